//! `source::kube` against a real API server.

use super::support::apiserver::ApiServer;

#[tokio::test]
async fn starts() {
    let start = std::time::Instant::now();
    let server = ApiServer::start().await;
    println!("{:?}", start.elapsed());
    println!("{}", server.namespace().await);
}
