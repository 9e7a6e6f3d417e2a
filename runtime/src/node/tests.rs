use weir_scheduler::{Config, ModelId, Tenant, TenantId};

use super::{message::SubmitWork, sequence::SequenceSpec, *};
use crate::{
    codec::hash::{BlockChain, ChainSalt},
    config::{ExecutorMode, ModelLocation},
    executor::wire::{FromExecutor, Report, RowResult, Sampled},
    outbox::Outbox,
    stream::{CancelOnDrop, StreamEvent, TokenStream},
    submission::{SamplingParams, Usage},
    why::Names,
};

/// A node with one fake model in an executor thread, and its inbox.
async fn node() -> (flume::Sender<NodeMessage>, Arc<Metrics>) {
    let spec: crate::config::ModelSpec = "fake:step=1ms,token=0us".parse().expect("a model");
    let ModelLocation::Fake(cost) = spec.source else { panic!("fake") };
    let (outlet, inbox) = flume::unbounded();
    let (started, starting) = oneshot::channel();
    let metrics = Arc::new(Metrics::new(&["fake".into()]));
    let mut scheduler = Scheduler::new(Config::default());
    scheduler.add_tenant(TenantId(1), Tenant::default());
    let models = vec![LoadModel::Fake { cost, seed: 0 }];
    let parts = NodeParts {
        scheduler,
        models: vec![NodeModel {
            name: "fake".into(),
            codec: Arc::new(Codec::bytes(1).expect("a codec")),
            context_len: 4096,
            embeds_only: false,
            path: PathBuf::new(),
        }],
        loads: models.into_iter().map(|load| (load, Vec::new())).collect(),
        pools: vec![None],
        tenants: Vec::new(),
        orders: flume::unbounded().0,
        devices: vec![DeviceConfig { threads: 1, rows_max: 8, ..DeviceConfig::cpu(0, ExecutorMode::Thread) }],
        canary_interval: Duration::from_secs(3600),
        inbox,
        outlet: outlet.clone(),
        metrics: metrics.clone(),
        recorder: Recorder::default(),
        status: Arc::new(Status::new()),
        ledger: None,
        secret: [3; 32],
        started,
    };
    std::thread::spawn(move || Node::new(parts).run());
    starting.await.expect("a word").expect("starts");
    (outlet, metrics)
}

/// The text and the usage of a request that draws 40 ids; `meanwhile` is called at each of its events.
async fn answer(node: &flume::Sender<NodeMessage>, group: u64, mut meanwhile: impl FnMut()) -> (String, Usage) {
    let spec = SequenceSpec {
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        new_tokens_max: 40,
        min_tokens: 0,
        stop: Vec::new(),
        ignore_eos: true,
        eos: Arc::from([]),
        logprobs: None,
    };
    let outbox = Arc::new(Outbox::default());
    let chain = BlockChain::new(ChainSalt::new(&[1; 32], 1, "fake"));
    let prompt: Arc<[u32]> = Arc::from([104, 101, 121]);
    let work = SubmitWork::Generate { choices: vec![spec], prompt, hashes: Vec::new(), chain, outbox: outbox.clone() };
    let (accepted, answer) = oneshot::channel();
    let names = Names { request: format!("req-{group}"), answer: None, key: "".into(), bill: None };
    let submit = Submit {
        group: GroupId(group),
        tenant: TenantId(1),
        model: ModelId(0),
        work,
        priority: 0,
        names,
        came: None,
        accepted,
    };
    node.send(NodeMessage::Submit(Box::new(submit))).expect("the node runs");
    answer.await.expect("a word").expect("accepted");
    let mut stream = TokenStream::new(outbox, 3, CancelOnDrop::new(|| {}));
    let mut whole = String::new();
    loop {
        meanwhile();
        match stream.next().await.expect("an ending comes first") {
            StreamEvent::Delta { text, .. } => whole.push_str(&text),
            StreamEvent::Finished { .. } => {}
            StreamEvent::Done(usage) => return (whole, usage),
            StreamEvent::Failed(failure) => panic!("{failure}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_executor_still_says_is_neither_delivered_nor_charged_nor_believed() {
    let (node, metrics) = node().await;
    let (expected, _) = answer(&node, 1, || {}).await;
    let mut late = 0;
    let injected = || {
        // The present one is epoch 1. Reports of every step that could be in flight, with an id of their own and an hour of
        // device time, and then its death.
        for step in 0..200 {
            let sampled = Sampled { id: 33, logprob: None, top: Vec::new() };
            let rows = vec![RowResult::Sampled(sampled)];
            let report = Report { step, device_nanos: 3_600_000_000_000, rows };
            let event = LinkEvent::Said(FromExecutor::Report(report));
            node.send(NodeMessage::Link { device: 0, epoch: 0, event }).expect("the node runs");
        }
        let event = LinkEvent::Down("long ago".into());
        node.send(NodeMessage::Link { device: 0, epoch: 0, event }).expect("the node runs");
        late += 1;
    };
    let (text, usage) = answer(&node, 2, injected).await;
    assert!(late > 1);
    assert_eq!(text, expected);
    assert_eq!(usage.completion_tokens, 40);
    assert!(usage.device_nanos < 3_600_000_000_000, "{}", usage.device_nanos);
    assert!(metrics.text().contains("weir_executor_restarts_total 0"));
    let (ended, end) = oneshot::channel();
    node.send(NodeMessage::Stop(ended)).expect("the node runs");
    end.await.expect("it says when it has ended");
}
