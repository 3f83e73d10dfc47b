use std::time::Duration;

use super::*;
use crate::net::proxy::Proxies;
use crate::net::request::fetch::server::Server;
use crate::net::request::fetch::{Conditions, Limits, fetch};
use crate::net::store::Store;
use crate::net::store::address::Address;
use crate::net::store::kind::Kind;

/// Of Azurite's account, which is public.
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
const LONG: Duration = Duration::from_secs(30);
const ACCOUNT: (&str, &str) = ("AZURE_STORAGE_ACCOUNT_NAME", "acct1");

fn store(environment: &Environment, access: Access) -> Store {
    let address = Address { kind: Kind::Az, bucket: "web".to_owned(), key: String::new() };
    Store::new(&address, environment, access, HttpConfig::default())
}

async fn signed(store: &Store, endpoint: Endpoint) -> Result<Parts, SignError> {
    let mut parts = hyper::Request::get(endpoint.url().unwrap()).body(()).unwrap().into_parts().0;
    store.http().signer.as_ref().unwrap().sign(&mut parts).await?;
    Ok(parts)
}

#[test]
fn objects_and_lists_are_where_the_account_or_the_endpoint_says() {
    let emulator = ("AZURE_STORAGE_ENDPOINT", "http://azurite:10000/devstoreaccount1/");
    for (variables, base) in [
        (Environment::from([ACCOUNT]), "https://acct1.blob.core.windows.net/web"),
        (Environment::from([("AZURE_STORAGE_ACCOUNT", "acct2")]), "https://acct2.blob.core.windows.net/web"),
        (Environment::from([emulator, ACCOUNT]), "http://azurite:10000/devstoreaccount1/web"),
        (Environment::default(), "https://blob.core.windows.net/web"),
    ] {
        let store = store(&variables, Access::default());
        assert_eq!(store.object("a b/c").unwrap().to_string(), format!("{base}/a%20b/c"));
        let list = store.list("conf/", Some("a/b")).unwrap().url().unwrap();
        let query = "restype=container&comp=list&include=metadata&prefix=conf%2F&marker=a%2Fb";
        assert_eq!(list.to_string(), format!("{base}?{query}"));
    }
}

#[test]
fn text_that_is_signed_and_its_signature_are_the_documented_ones() {
    // The example of 'Authorize with Shared Key', its signature by openssl.
    let url = "https://myaccount.blob.core.windows.net/mycontainer?restype=container&comp=metadata&timeout=20";
    let mut request = hyper::Request::get(url).header("x-ms-version", "2015-02-21").body(()).unwrap().into_parts().0;
    let now = "2015-06-26T23:39:12Z".parse().unwrap();
    let credential = shared_key("myaccount", &STANDARD.decode(KEY).unwrap(), &mut request, now).unwrap();
    assert_eq!(
        text("myaccount", &request),
        "GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\nx-ms-version:2015-02-21\n\
         /myaccount/mycontainer\ncomp:metadata\nrestype:container\ntimeout:20"
    );
    assert_eq!(credential, "SharedKey myaccount:1u9lui2jDxj0+fpbHjQ5m5NnastJRSYM+PSmfi8TXx4=");
    assert!(credential.is_sensitive());

    let headers = [
        ("content-length", "6"),
        ("content-type", "application/gzip"),
        ("if-match", "\"1\""),
        ("if-none-match", "*"),
        ("x-ms-version", "2023-11-03"),
        ("x-ms-blob-type", "BlockBlob"),
        ("user-agent", "not this"),
    ];
    let mut request = hyper::Request::put("http://azurite:10000/dev/web/a%20b?prefix=x%2Fy");
    for (name, value) in headers {
        request = request.header(name, value);
        assert_eq!(signs(name), name != "user-agent", "{name}");
    }
    let mut request = request.body(()).unwrap().into_parts().0;
    let rest = "x-ms-blob-type:BlockBlob\nx-ms-version:2023-11-03\n/dev/dev/web/a%20b\nprefix:x/y";
    let whole = format!("PUT\n\n\n6\n\napplication/gzip\n\n\n\"1\"\n*\n\n\n{rest}");
    assert_eq!(text("dev", &request), whole);
    request.headers.insert("content-length", HeaderValue::from_static("0"));
    assert_eq!(text("dev", &request), whole.replacen('6', "", 1), "no length is no value");
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let anonymous = Access { anonymous: true, ..Access::default() };
    let file = ("AZURE_FEDERATED_TOKEN_FILE", "/none/token");
    let client = ("AZURE_CLIENT_ID", "canary");
    let tenant = ("AZURE_TENANT_ID", "canary");
    let named = Access::default();
    for (variables, access, words) in [
        (Environment::default(), named, "AZURE_STORAGE_ACCOUNT_NAME is not set"),
        (Environment::from([("AZURE_STORAGE_ACCOUNT", "canary.x/")]), anonymous, "no storage account's name"),
        (Environment::from([("AZURE_STORAGE_ENDPOINT", "canary:9")]), anonymous, "AZURE_STORAGE_ENDPOINT is no URL"),
        (Environment::from([ACCOUNT]), named, "neither AZURE_FEDERATED_TOKEN_FILE"),
        (Environment::from([ACCOUNT, client, tenant]), named, "neither AZURE_FEDERATED_TOKEN_FILE"),
        (Environment::from([ACCOUNT, ("AZURE_STORAGE_KEY", "canary!")]), named, "is no base64"),
        (
            Environment::from([("AZURE_STORAGE_ENDPOINT", "http://x/a"), ("AZURE_STORAGE_ACCOUNT_KEY", KEY)]),
            named,
            "AZURE_STORAGE_ACCOUNT_NAME is not: it takes both",
        ),
        (Environment::from([ACCOUNT, (SAS, "sv=canary")]), named, "no shared access signature"),
        (Environment::from([ACCOUNT, (SAS, "sig=can ary")]), named, "no shared access signature"),
        (Environment::from([ACCOUNT, file, tenant]), named, "AZURE_CLIENT_ID is not"),
        (Environment::from([ACCOUNT, file, client]), named, "AZURE_TENANT_ID is not"),
        (Environment::from([ACCOUNT, file, client, tenant]), named, "/none/token: No such file"),
        (
            Environment::from([ACCOUNT, file, client, tenant, ("AZURE_AUTHORITY_HOST", "canary")]),
            named,
            "AZURE_AUTHORITY_HOST is no URL",
        ),
    ] {
        let store = store(&variables, access);
        let error = signed(&store, store.object("a").unwrap()).await.unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains("canary"), "{error}");
    }
    let store = store(&Environment::from([ACCOUNT, ("AZURE_STORAGE_KEY", KEY)]), anonymous);
    let nobody = signed(&store, store.object("a").unwrap()).await.unwrap();
    assert!(nobody.headers.len() == 1 && nobody.headers["x-ms-version"] == VERSION, "{nobody:?}");
}

#[tokio::test]
async fn keys_sign_and_signatures_are_sent_and_neither_is_shown() {
    let key = STANDARD.encode("canary");
    let variables = Environment::from([ACCOUNT, ("AZURE_STORAGE_ACCOUNT_KEY", &key), (SAS, "sig=later")]);
    let by_key = store(&variables, Access::default());
    let parts = signed(&by_key, by_key.object("a b").unwrap()).await.unwrap();
    assert!(parts.headers["authorization"].to_str().unwrap().starts_with("SharedKey acct1:"), "{parts:?}");
    assert_eq!(parts.uri.query(), None, "keys come first");
    let by_sas = store(&Environment::from([ACCOUNT, (SAS, "?sv=2023&sig=canary%2B")]), Access::default());
    for (endpoint, query) in [
        (by_sas.object("a b").unwrap(), "sv=2023&sig=canary%2B"),
        (by_sas.list("", None).unwrap(), "restype=container&comp=list&include=metadata&prefix=&sv=2023&sig=canary%2B"),
    ] {
        let parts = signed(&by_sas, endpoint.clone()).await.unwrap();
        assert_eq!(parts.uri.query(), Some(query));
        assert!(parts.headers.get("authorization").is_none() && parts.headers["x-ms-version"] == VERSION);
        assert!(!format!("{endpoint} {endpoint:?}").contains("canary"));
    }
    assert!(!format!("{by_key:?}{by_sas:?}{variables:?}").contains("canary"));
}

fn list(blobs: &str, rest: &str) -> String {
    format!(
        "\u{feff}<?xml version=\"1.0\"?><EnumerationResults ContainerName=\"web\"><Blobs>{blobs}</Blobs>{rest}</EnumerationResults>"
    )
}

fn blob(name: &str, properties: &str, metadata: &str) -> String {
    format!("<Blob><Name>{name}</Name><Properties>{properties}</Properties>{metadata}</Blob>")
}

#[test]
fn folders_are_no_objects_and_pages_follow_each_other() {
    let file = "<Last-Modified>x</Last-Modified><Etag>0x8D</Etag><Content-Length>3</Content-Length>";
    let empty = "<Etag>\"0x8E\"</Etag><Content-Length>0</Content-Length>";
    let all = [
        blob("conf/a &amp; b", file, "<Metadata />"),
        blob("conf/empty", empty, "<Metadata><other>true</other></Metadata>"),
        blob("conf/sub", &format!("{empty}<ResourceType>directory</ResourceType>"), ""),
        blob("conf/old", empty, "<Metadata><Hdi_isfolder>true</Hdi_isfolder></Metadata>"),
        blob("conf/sub/c", &format!("{file}<ResourceType>file</ResourceType>"), "<Metadata><x>1</x></Metadata>"),
    ];
    let listed = listed(&list(&all.concat(), "<NextMarker>2!x</NextMarker>")).unwrap();
    let objects: Vec<_> = listed.objects.iter().map(|object| (&*object.key, &*object.etag, object.size)).collect();
    assert_eq!(objects, [("conf/a & b", "\"0x8D\"", 3), ("conf/empty", "\"0x8E\"", 0), ("conf/sub/c", "\"0x8D\"", 3)]);
    assert_eq!(listed.next.as_deref(), Some("2!x"));
    let none = super::listed(&list("", "<NextMarker />")).unwrap();
    assert!(none.objects.is_empty() && none.next.is_none());
    let broken = [list(&blob("a", "<Etag>1</Etag>", ""), ""), "<html>".to_owned(), "<ListBucketResult/>".to_owned()];
    for broken in broken {
        assert!(super::listed(&broken).is_none(), "{broken}");
    }
}

#[test]
fn refusals_say_what_to_do() {
    let error = |code: u16, name: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert("x-ms-error-code", HeaderValue::from_static(name));
        headers.insert("x-ms-request-id", HeaderValue::from_static("17f0-a"));
        let body = format!("<Error><Code>{name}</Code><Message>canary</Message></Error>");
        crate::net::request::refused::Refused::of(Kind::Az, code, &headers, body.as_bytes()).to_string()
    };
    for (code, name, words) in [
        (403, "AuthenticationFailed", "is not the account's key"),
        (403, "AuthorizationPermissionMismatch", "Storage Blob Data Reader"),
        (403, "AuthorizationFailure", "firewall"),
        (404, "ContainerNotFound", "the container's name"),
        (409, "PublicAccessNotPermitted", "is the container public"),
        (409, "BlobArchived", "archive tier"),
        (503, "ServerBusy", "trying again"),
    ] {
        let text = error(code, name);
        let start = format!("the store answered {code} {name} (request 17f0-a); ");
        assert!(text.starts_with(&start) && text.contains(words) && !text.contains("canary"), "{text}");
    }
}

#[tokio::test]
async fn signature_goes_to_the_store_and_through_a_proxy_and_is_in_no_error() {
    let server = Server::start("HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n");
    let limits = Limits { connect: LONG, quiet: LONG, bytes: 9 };
    for (base, proxy, start) in [
        (server.url("/dev"), String::new(), "GET /dev/web/a?sig=canary HTTP/1.1\r\n"),
        (
            "http://azurite.example:1/dev".to_owned(),
            server.url(""),
            "GET http://azurite.example:1/dev/web/a?sig=canary HTTP/1.1\r\n",
        ),
    ] {
        let variables = Environment::from([("AZURE_STORAGE_ENDPOINT", &*base), (SAS, "sig=canary")]);
        let address = Address { kind: Kind::Az, bucket: "web".to_owned(), key: String::new() };
        // None is used for this machine.
        let proxies = Some(Proxies::new(String::new(), proxy, String::new()));
        let http = HttpConfig { proxies, ..HttpConfig::default() };
        let store = Store::new(&address, &variables, Access::default(), http);
        let at = store.object("a").unwrap();
        let error = fetch(&at, store.http(), &limits, &Conditions::default()).await.unwrap_err();
        let heads = server.heads();
        assert!(heads.last().unwrap().starts_with(start), "{heads:?}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
}
