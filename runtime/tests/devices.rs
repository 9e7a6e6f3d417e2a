//! Several devices in one node, below HTTP, with executors in threads. The same with processes that are killed is in
//! `tests/e2e/devices.py`.

mod rig;

use std::time::Duration;

use rig::{Answer, complete, metric, read, read_telling};
use weir_runtime::{
    DeviceConfig, Engine, EngineConfig, FailureKind, Submission,
    devices::{DeviceError, DevicePhase},
};

/// An engine with so many CPU devices, each with one fake model.
async fn start(devices: u32, cost: &str) -> Engine {
    let config = EngineConfig {
        devices: (0..devices).map(|index| DeviceConfig { threads: 1, ..rig::cpu(index) }).collect(),
        ..rig::config(rig::specs(&[&format!("m=fake:{cost}")]))
    };
    Engine::start(config).await.expect("starts")
}

fn ask(engine: &Engine, prompt: &str, max_tokens: u32) -> Submission {
    rig::text(engine, "a", prompt, max_tokens)
}

fn whole(answer: &Answer) -> (&str, u32) {
    (&answer.texts[0], answer.end.as_ref().expect("complete").completion_tokens)
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_spread_over_devices_and_are_the_same_as_on_one() {
    let prompts: Vec<String> = (0..24).map(|i| format!("text {i}")).collect();
    let one = start(1, "step=1ms,token=1us").await;
    let two = start(2, "step=1ms,token=1us").await;
    let mut streams = Vec::new();
    for prompt in &prompts {
        streams.push(two.submit(ask(&two, prompt, 60)).await.expect("accepted"));
    }
    for (stream, prompt) in streams.into_iter().zip(&prompts) {
        let (spread, alone) = (read(stream, 1).await, complete(&one, ask(&one, prompt, 60)).await);
        assert_eq!(whole(&spread), whole(&alone));
    }
    let devices = two.devices().await.expect("devices");
    assert!(devices.iter().all(|device| device.phase == DevicePhase::Ready && device.steps > 10), "{devices:?}");
    assert!(metric(&two, "weir_device_steps_total{device=\"cpu:1\"}").await > 10.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_ends_two_executors_at_most_and_everybody_else_is_answered() {
    let engine = start(2, "step=1ms,token=1us,crash_on=7").await;
    let mut expected = Vec::new();
    for index in 0..16 {
        expected.push(complete(&engine, ask(&engine, &format!("bystander {index}"), 80)).await);
    }
    let (begun, mut beginning) = tokio::sync::mpsc::unbounded_channel();
    let bystanders: Vec<_> = (0..16)
        .map(|index| {
            let (engine, begun) = (engine.clone(), begun.clone());
            tokio::spawn(async move {
                let stream = engine.submit(ask(&engine, &format!("bystander {index}"), 80)).await.expect("accepted");
                let mut first = Some(begun);
                read_telling(stream, 1, || {
                    first.take().map(|begun| begun.send(()));
                })
                .await
            })
        })
        .collect();
    for _ in 0..16 {
        beginning.recv().await.expect("begins");
    }
    let poison = complete(&engine, ask(&engine, "poison \u{7}", 4)).await;
    assert_eq!(poison.end, Err(FailureKind::Quarantined));
    for (bystander, expected) in bystanders.into_iter().zip(&expected) {
        assert_eq!(whole(&bystander.await.expect("ends")), whole(expected));
    }
    let deaths: u64 = engine.devices().await.expect("devices").iter().map(|device| device.epoch / 2).sum();
    assert_eq!(deaths, 2, "once in company, once alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_hands_on_what_waits_and_what_runs_at_the_deadline() {
    let engine = start(2, "step=2ms,token=1us").await;
    let expected = complete(&engine, ask(&engine, "long", 400)).await;
    let mut streams = Vec::new();
    for _ in 0..6 {
        streams.push(engine.submit(ask(&engine, "long", 400)).await.expect("accepted"));
    }
    let status = engine.drain_device("cpu:0", Some(Duration::ZERO), false).await.expect("drains");
    assert_eq!(status.phase, DevicePhase::Drained);
    assert_eq!(engine.drain_device("cpu:1", None, false).await, Err(DeviceError::Last("cpu:1".into())));
    assert_eq!(engine.drain_device("cpu:2", None, false).await, Err(DeviceError::Unknown("cpu:2".into())));
    assert!(engine.ready().is_ok());
    for stream in streams {
        assert_eq!(whole(&read(stream, 1).await), whole(&expected));
    }
    let status = engine.resume_device("cpu:0").await.expect("resumes");
    assert_eq!(status.phase, DevicePhase::Loading);
    // The other one can go as soon as this one is back.
    while engine.drain_device("cpu:1", None, false).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(whole(&complete(&engine, ask(&engine, "long", 400)).await), whole(&expected));
    let devices = engine.devices().await.expect("devices");
    assert_eq!(devices[1].phase, DevicePhase::Drained);
    assert!(devices[0].steps > 400, "{devices:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_to_embed_goes_on_elsewhere() {
    let engine = start(2, "step=2ms,token=10us").await;
    let list = |engine: &Engine| rig::embedding(engine, "a", (0..200).map(|index| format!("input {index}")));
    let expected = engine.embed(list(&engine)).await.expect("vectors");
    let running = tokio::spawn({
        let engine = engine.clone();
        async move { engine.embed(list(&engine)).await }
    });
    while engine.devices().await.expect("devices").iter().all(|device| device.requests_running == 0) {
        tokio::task::yield_now().await;
    }
    let busy = engine.devices().await.expect("devices").into_iter().find(|device| device.requests_running > 0);
    if let Some(busy) = busy {
        engine.drain_device(&busy.name, Some(Duration::ZERO), false).await.expect("drains");
    }
    let answer = running.await.expect("ends").expect("vectors");
    assert_eq!(answer.vectors, expected.vectors);
}
