//! Why a request waited, as the engine tells it; the answers of the API are in `tests/e2e/why.py`.

mod rig;

use rig::{complete, metric, read, read_telling};
use weir_runtime::{Cause, Engine, Explanation, FailureKind, RequestState, Submission};

async fn fake(cost: &str) -> Engine {
    rig::start(&[&format!("m=fake:{cost}")]).await
}

fn text(engine: &Engine, id: &str, prompt: &str, max_tokens: u32) -> Submission {
    let answer_id = Some(format!("cmpl-{id}"));
    Submission { request_id: id.into(), answer_id, ..rig::text(engine, "a", prompt, max_tokens) }
}

async fn why(engine: &Engine, tenant: &str, id: &str) -> Option<Explanation> {
    engine.why(Some(engine.tenant(tenant).expect("tenant")), id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_death_takes_is_placement_and_what_came_before_is_kept() {
    let engine = fake("step=2ms,token=5us,crash_on=7").await;
    let stream = engine.submit(text(&engine, "bystander", "hello", 400)).await.expect("accepted");
    let (delivered, deliveries) = flume::unbounded();
    let reading = tokio::spawn(read_telling(stream, 1, move || delivered.send(()).expect("the test waits")));
    for _ in 0..20 {
        deliveries.recv_async().await.expect("it draws");
    }
    let before = why(&engine, "a", "bystander").await.expect("known");
    assert_eq!((before.state, before.times.of(Cause::Placement).0), (RequestState::Running, 0));
    assert!(before.times.of(Cause::Steps).0 > 0);

    let killer = complete(&engine, text(&engine, "killer", "poison \u{7}", 5)).await;
    assert_eq!(killer.end, Err(FailureKind::Quarantined));
    let usage = reading.await.expect("no panic").end.expect("done");
    let after = why(&engine, "a", "cmpl-bystander").await.expect("known");
    assert_eq!((after.state, after.cause, after.place), (RequestState::Finished, None, None));
    assert!(after.times.of(Cause::Placement).0 > 0, "two executors were started: {:?}", after.times);
    for cause in Cause::ALL {
        assert!(after.times.of(cause) >= before.times.of(cause), "{cause:?} is kept");
    }
    assert_eq!(after.device_nanos, usage.device_nanos);
    let killer = why(&engine, "a", "killer").await.expect("known");
    assert_eq!(killer.state, RequestState::Failed);
    let counted = metric(&engine, "weir_request_wait_seconds_total{cause=\"placement\"}").await;
    let told = after.times.of(Cause::Placement) + killer.times.of(Cause::Placement);
    assert!((counted - told.0 as f64 / 1e9).abs() < 1e-6, "{counted}");
    assert_eq!(why(&engine, "b", "bystander").await, None);
    assert_eq!(engine.why(None, "bystander").await, Some(after));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slowest_choice_speaks_for_all_and_the_bill_is_everybodys() {
    let engine = fake("step=1ms,token=5us").await;
    let several = Submission { n: 12, ..text(&engine, "several", "hello", 20) };
    let stream = engine.submit(several).await.expect("accepted");
    let told = why(&engine, "a", "several").await.expect("it is known once it is accepted");
    assert_eq!(told.parts, 12);
    let usage = read(stream, 12).await.end.expect("done");
    let several = why(&engine, "a", "several").await.expect("known");
    assert_eq!((several.state, several.parts, several.device_nanos), (RequestState::Finished, 12, usage.device_nanos));
    // Not the sum of twelve times, each of which has at least twenty steps.
    let steps = several.times.of(Cause::Steps).0;
    assert!(steps >= 20_000_000 && several.times.total() >= told.times.total());
    let micros = several.times.micros();
    assert_eq!(micros.iter().sum::<u64>(), several.times.total().0 / 1_000);
}
