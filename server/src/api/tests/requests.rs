//! Why a request waited, told to its tenant and to nobody else.

use super::*;

async fn explained(router: &Router, key: &str, id: &str) -> Answer {
    ask(router, Some(key), Method::GET, &format!("/v1/requests/{id}"), "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_explained_to_its_tenant_only() {
    let (_, router) = loaded(LIMITS).await;
    let answer = post(&router, "/v1/chat/completions", hello()).await;
    let ids = [answer.json()["id"].as_str().expect("id").to_owned(), answer.header("x-request-id").expect("id").into()];
    for id in ids {
        let told = explained(&router, KEY, &id).await;
        assert_eq!(told.status, 200, "{}", told.text());
        let told = told.json();
        assert_eq!((told["id"].as_str(), told["object"].as_str()), (Some(&*id), Some("request")));
        assert_eq!((told["model"].as_str(), told["state"].as_str()), (Some("m"), Some("finished")));
        let waits = told["wait_us"].as_object().expect("waits");
        let micros = |value: &Value| value.as_u64().expect("microseconds");
        let sum: u64 = waits.values().map(micros).sum();
        assert_eq!(sum + micros(&told["steps_us"]), micros(&told["total_us"]));
        assert!(told["cause"].is_null() && told["position"].is_null() && told["expected_start_ms"].is_null());

        let theirs = explained(&router, OTHER_KEY, &id).await;
        let nobodys = explained(&router, OTHER_KEY, "req-nobodys").await;
        assert_eq!((theirs.status.as_u16(), code(&theirs).as_str()), (404, "request_not_found"));
        assert_eq!(theirs.text().replace(&id, "req-nobodys"), nobodys.text());
    }
    assert_eq!(explained(&router, KEY, "%ff").await.status, 400);
    assert_eq!(explained(&router, KEY, &"x".repeat(5_000)).await.status, 404);
}
