use super::*;
use crate::net::store::Store;
use crate::net::store::address::Address;
use crate::net::store::kind::Kind;

fn store(environment: &Environment, bucket: &str, access: Access) -> Store {
    let address = Address { kind: Kind::S3, bucket: bucket.to_owned(), key: String::new() };
    Store::new(&address, environment, access, HttpConfig::default())
}

async fn signed(store: &Store, key: &str) -> Result<Parts, SignError> {
    let endpoint = store.object(key).unwrap();
    let request = hyper::Request::get(endpoint.to_string()).body(()).unwrap();
    let mut parts = request.into_parts().0;
    store.http().signer.as_ref().unwrap().sign(&mut parts).await?;
    Ok(parts)
}

#[test]
fn objects_are_where_the_region_or_the_endpoint_says() {
    for (variables, bucket, place) in [
        (
            Environment::from([("AWS_REGION", "eu-central-1")]),
            "web",
            "https://web.s3.eu-central-1.amazonaws.com/a%20b/c",
        ),
        (
            Environment::from([("AWS_DEFAULT_REGION", "cn-north-1")]),
            "web",
            "https://web.s3.cn-north-1.amazonaws.com.cn/a%20b/c",
        ),
        (Environment::from([("AWS_REGION", "eu-west-1")]), "a.b", "https://s3.eu-west-1.amazonaws.com/a.b/a%20b/c"),
        (Environment::from([("AWS_ENDPOINT_URL", "http://minio:9000/")]), "web", "http://minio:9000/web/a%20b/c"),
        (Environment::default(), "web", "https://web.s3.amazonaws.com/a%20b/c"),
    ] {
        assert_eq!(store(&variables, bucket, Access::default()).object("a b/c").unwrap().to_string(), place);
    }
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let region = ("AWS_REGION", "eu-central-1");
    let anonymous = Access { anonymous: true, ..Access::default() };
    for (variables, access, words) in [
        (Environment::default(), Access::default(), "AWS_REGION is not set"),
        (Environment::from([("AWS_REGION", "Frankfurt/x")]), anonymous, "no region's name"),
        (Environment::from([("AWS_ENDPOINT_URL", "minio:9000")]), anonymous, "AWS_ENDPOINT_URL is no URL"),
        (Environment::from([region]), Access::default(), "neither AWS_ACCESS_KEY_ID"),
        (
            Environment::from([region, ("AWS_ACCESS_KEY_ID", "canary")]),
            Access::default(),
            "AWS_SECRET_ACCESS_KEY is not",
        ),
        (
            Environment::from([region, ("AWS_SECRET_ACCESS_KEY", "canary")]),
            Access::default(),
            "AWS_ACCESS_KEY_ID is not",
        ),
        (
            Environment::from([region, ("AWS_ROLE_ARN", "canary")]),
            Access::default(),
            "AWS_WEB_IDENTITY_TOKEN_FILE is not",
        ),
        (
            Environment::from([region, ("AWS_ROLE_ARN", "x"), ("AWS_WEB_IDENTITY_TOKEN_FILE", "/none/token")]),
            Access::default(),
            "/none/token: No such file",
        ),
    ] {
        let error = signed(&store(&variables, "web", access), "a").await.unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains("canary"), "{error}");
    }
    let nobody = signed(&store(&Environment::from([region]), "web", anonymous), "a").await.unwrap();
    assert!(nobody.headers.is_empty());
}

#[tokio::test]
async fn keys_sign_and_are_not_shown() {
    let store = store(
        &Environment::from([
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ACCESS_KEY_ID", "AKID"),
            ("AWS_SECRET_ACCESS_KEY", "canary"),
            ("AWS_SESSION_TOKEN", "token"),
        ]),
        "web",
        Access::default(),
    );
    let parts = signed(&store, "a b").await.unwrap();
    let authorization = parts.headers["authorization"].to_str().unwrap();
    assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKID/"), "{authorization}");
    assert!(authorization.contains("/eu-central-1/s3/aws4_request"), "{authorization}");
    assert_eq!(parts.headers["x-amz-security-token"], "token");
    assert!(
        !format!("{store:?}{:?}{parts:?}", Environment::from([("AWS_SECRET_ACCESS_KEY", "canary")])).contains("canary")
    );
}
