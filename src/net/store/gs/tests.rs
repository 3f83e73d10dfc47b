use super::*;
use crate::net::request::refused::Refused;
use crate::net::store::Store;
use crate::net::store::address::Address;
use crate::net::store::kind::Kind;

fn store(environment: &Environment, access: Access) -> Store {
    let address = Address { kind: Kind::Gs, bucket: "web".to_owned(), key: String::new() };
    Store::new(&address, environment, access, HttpConfig::default())
}

async fn signed(environment: &Environment, access: Access) -> Result<Parts, SignError> {
    let mut parts = hyper::Request::get("https://storage.googleapis.com/web/a").body(()).unwrap().into_parts().0;
    let store = store(environment, access);
    store.http().signer.as_ref().unwrap().sign(&mut parts).await?;
    Ok(parts)
}

#[tokio::test]
async fn objects_are_at_google_or_where_the_environment_says() {
    for (host, place) in [
        ("", "https://storage.googleapis.com/web/a%20b/c"),
        ("localhost:4443", "http://localhost:4443/web/a%20b/c"),
        ("https://gcs.example/", "https://gcs.example/web/a%20b/c"),
    ] {
        let environment = if host.is_empty() { Environment::default() } else { Environment::from([(EMULATOR, host)]) };
        let store = store(&environment, Access { anonymous: true, ..Access::default() });
        assert_eq!(store.object("a b/c").unwrap().to_string(), place);
    }
    for host in ["gcs.example/storage", "http://", "http://x?canary", "unix:///canary"] {
        let error = signed(&Environment::from([(EMULATOR, host)]), Access::default()).await.unwrap_err().to_string();
        assert!(error.contains("STORAGE_EMULATOR_HOST is no address") && !error.contains("canary"), "{error}");
    }
}

#[test]
fn upload_names_its_object_in_the_query_and_says_whether_it_may_be_there() {
    let store = store(&Environment::default(), Access::default());
    let object = store.object("a b/c&d+e.tar.gz").unwrap();
    let url = |if_absent| upload(&object, if_absent).endpoint.url().unwrap().to_string();
    let place = "https://storage.googleapis.com/upload/storage/v1/b/web/o?uploadType=media&name=a%20b/c%26d%2Be.tar.gz";
    assert_eq!((url(false), url(true)), (place.to_owned(), format!("{place}&ifGenerationMatch=0")));
}

#[tokio::test]
async fn nobody_asks_where_it_is_said_or_an_emulator_wants_no_one() {
    let anonymous = Access { anonymous: true, ..Access::default() };
    let file = Environment::from([("GOOGLE_APPLICATION_CREDENTIALS", "/none")]);
    let emulator = Environment::from([(EMULATOR, "localhost:1")]);
    for (environment, access) in [(file, anonymous), (emulator, Access::default())] {
        assert!(signed(&environment, access).await.unwrap().headers.is_empty());
    }
}

#[tokio::test]
async fn what_is_missing_is_named_and_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let (file, token) = (folder.path().join("file"), folder.path().join("token"));
    std::fs::write(&token, r#"{"canary":"canary"}"#).unwrap();
    let environment = Environment::from([("GOOGLE_APPLICATION_CREDENTIALS", file.to_str().unwrap())]);
    let source = |format: &str| {
        format!(
            r#"{{"type":"external_account","audience":"a","subject_token_type":"t","token_url":"canary",
            "credential_source":{{"file":{token:?},"format":{format}}}}}"#
        )
    };
    let key = |key: &str| {
        format!(r#"{{"type":"service_account","client_email":"canary","token_uri":"canary","private_key":"{key}"}}"#)
    };
    for (content, words) in [
        (String::new(), "is no JSON"),
        ("canary".to_owned(), "is no JSON"),
        (r#"{"private_key":"canary"}"#.to_owned(), "its type is missing"),
        (r#"{"type":"authorized_user"}"#.to_owned(), "neither service_account nor external_account"),
        (key("canary"), "its private_key is no RSA key in PEM"),
        (r#"{"type":"external_account","credential_source":{"url":"canary"}}"#.to_owned(), "has no file"),
        (source("{}").replace("token\"", "none\""), "none: No such file"),
        (source(r#"{"subject_token_field_name":"id"}"#), "its id is missing"),
        (source(r#"{"subject_token_field_name":"canary"}"#), "names a service by what is no URL"),
    ] {
        std::fs::write(&file, &content).unwrap();
        let error = signed(&environment, Access::default()).await.unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains("canary"), "{content}: {error}");
    }
    std::fs::remove_file(&file).unwrap();
    let error = signed(&environment, Access::default()).await.unwrap_err().to_string();
    assert!(error.contains("GOOGLE_APPLICATION_CREDENTIALS names, /"), "{error}");
}

#[test]
fn refusals_are_distinguished_and_say_what_to_do() {
    let refused = |code, body: &[u8]| Refused::of(Kind::Gs, code, &HeaderMap::new(), body);
    for (body, absent) in [
        (&b"<Error><Code>NoSuchKey</Code></Error>"[..], true),
        (b"Not Found", true),
        (b"<Error><Code>NoSuchBucket</Code></Error>", false),
    ] {
        assert_eq!(refused(404, body).is_absence(), absent);
    }
    for (code, name, words) in [
        (404, "NoSuchBucket", "is the bucket's name right?"),
        (403, "AccessDenied", "(roles/storage.objectViewer)"),
        (401, "AuthenticationRequired", "it does not take the token"),
        (400, "UserProjectMissing", "whose readers pay"),
        (429, "SlowDown", "trying again"),
    ] {
        let text = refused(code, format!("<Code>{name}</Code><Details>canary</Details>").as_bytes()).to_string();
        assert!(text.contains(words) && !text.contains("canary") && !text.contains("AWS"), "{text}");
    }
}
