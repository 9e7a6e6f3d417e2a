use std::{fs, io::Write, os::unix::fs::PermissionsExt};

use weir_scheduler::{BlockRange, ModelLimits, PlanRow, RequestId, RowKind};

use super::*;

fn header() -> Header {
    let tenant = TenantLine {
        name: "a".into(),
        weight: 2,
        queue_len_max: 9,
        running_max: 8,
        kv_blocks_floor: 0,
        kv_blocks_ceiling: None,
    };
    let device = DeviceLine { name: "cpu:0".into(), step_latency_max: 200_000_000 };
    Header { devices: vec![device], tenants: vec![tenant], queue_len_max: 64 }
}

fn request(at: u64) -> Note {
    Note::Request(RequestNote {
        at,
        tenant: 0,
        model: 0,
        priority: 0,
        prompt_len: 70,
        new_tokens_max: 16,
        drawn: vec![3, 4],
        lens: Vec::new(),
        blocks: vec![11, 12],
        cached_tokens: 32,
        end: RequestEnd::Finished,
        ttft: Some(5),
        took: 9,
        device_nanos: 7,
    })
}

fn step(at: u64) -> Note {
    let rows = [(100, 1, true), (0, 4, false)].map(|(from, len, samples)| PlanRow {
        request: RequestId(0),
        kind: RowKind::Generate { from, len, samples, blocks: BlockRange::default() },
    });
    Note::Step { at, device: 0, model: 0, load: StepLoad::of(&rows), device_nanos: 6, wall_nanos: 8 }
}

/// What is written of notes, before which `drops` others found no room, and how many lines were counted.
fn written(bytes_max: u64, drops: u64, notes: Vec<Note>) -> (String, u64) {
    let (lines, dropped, mut out) = (Counter::default(), Counter::default(), Vec::new());
    let mut writer = Writer::new(&mut out, bytes_max, lines.clone(), dropped.clone());
    writer.begin(&header()).expect("memory");
    dropped.inc_by(drops);
    let (sender, inbox) = flume::unbounded();
    notes.into_iter().for_each(|note| sender.send(note).expect("room"));
    drop(sender);
    writer.run(&inbox).expect("memory");
    (String::from_utf8(out).expect("text"), lines.get())
}

#[test]
fn the_lines_are_exactly_these() {
    let limits = ModelLimits { blocks: 5, rows_max: 6, tokens_max: 7, context_len_max: 8 };
    let model = Note::Model { at: 1, device: 0, model: 0, name: "m".into(), limits };
    let (text, lines) = written(1 << 20, 0, vec![model, request(2), step(3), request(4)]);
    let version = env!("CARGO_PKG_VERSION");
    let expected = [
        format!(
            r#"{{"kind":"header","format":1,"weir":"{version}","devices":[{{"name":"cpu:0","step_latency_max":200000000}}],"tenants":[{{"name":"a","weight":2,"queue_len_max":9,"running_max":8,"kv_blocks_floor":0,"kv_blocks_ceiling":null}}],"queue_len_max":64}}"#
        ),
        r#"{"kind":"model","at":1,"device":0,"model":0,"name":"m","blocks":5,"rows_max":6,"tokens_max":7,"context_len_max":8}"#.into(),
        r#"{"kind":"request","at":2,"tenant":0,"model":0,"prompt_len":70,"new_tokens_max":16,"drawn":[3,4],"blocks":[[0,2]],"cached_tokens":32,"end":"finished","ttft":5,"took":9,"device_time":7}"#.into(),
        r#"{"kind":"step","at":3,"device":0,"model":0,"decode":[1,101],"prefill":[1,4,4,10],"embed":[0,0,0],"device_time":6,"wall":8}"#.into(),
        r#"{"kind":"request","at":4,"tenant":0,"model":0,"prompt_len":70,"new_tokens_max":16,"drawn":[3,4],"blocks":[[0,2]],"cached_tokens":32,"end":"finished","ttft":5,"took":9,"device_time":7}"#.into(),
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    assert_eq!(lines, 5);
}

#[test]
fn what_was_dropped_is_said_where_it_is_missing() {
    let (text, _) = written(1 << 20, 3, vec![step(1), step(2)]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[1], r#"{"kind":"dropped","lines":3}"#);
    assert_eq!(lines.len(), 4, "once: {text}");
}

#[test]
fn a_trace_ends_at_its_size_and_says_so() {
    for bytes_max in [600, 601, 650, 700, 1000, 5000] {
        let (text, _) = written(bytes_max, 0, (0..1000).map(request).collect());
        assert!(text.len() as u64 <= bytes_max, "{} of {bytes_max}", text.len());
        assert_eq!(text.lines().last(), Some(format!(r#"{{"kind":"end","bytes_max":{bytes_max}}}"#).as_str()));
        assert!(text.ends_with('\n'));
    }
}

/// Takes nothing until it is let go.
struct Stuck(flume::Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_writer_that_stands_still_holds_nobody_up() {
    let (let_go, gate) = flume::bounded(0);
    let (notes, inbox) = flume::bounded(NOTES_LEN_MAX);
    let dropped = Counter::default();
    let mut recorder = Recorder { ends: Some(Ends { notes, dropped: dropped.clone() }), writer: None };
    let writer = Writer::new(Stuck(gate), u64::MAX, Counter::default(), dropped.clone());
    let thread = thread::spawn(move || writer.run(&inbox));
    // Some are in the writer's buffer, some in the channel; the others found no room.
    (0..3 * NOTES_LEN_MAX as u64).for_each(|at| recorder.note(step(at)));
    assert!(dropped.get() >= NOTES_LEN_MAX as u64, "{}", dropped.get());
    drop((recorder, let_go));
    thread.join().expect("no panic").expect("written");
}

#[test]
fn the_file_is_its_owners_and_never_written_over() {
    let folder = tempfile::tempdir().expect("folder");
    let config = RecordConfig { path: folder.path().join("t"), bytes_max: 1 << 20 };
    let start = || Recorder::start(&config, &header(), Counter::default(), Counter::default());
    let (recorder, draft) = start().expect("starts");
    assert!(recorder.is_on() && !Recorder::default().is_on());
    assert_eq!(fs::metadata(&config.path).expect("there").permissions().mode() & 0o777, 0o600);
    assert_eq!(start().expect_err("there already").kind(), io::ErrorKind::AlreadyExists);
    draft.keep();
    assert!(fs::read_to_string(&config.path).expect("text").starts_with(r#"{"kind":"header""#));
}

#[test]
fn a_start_that_failed_leaves_its_path_free() {
    let folder = tempfile::tempdir().expect("folder");
    let config = RecordConfig { path: folder.path().join("t"), bytes_max: 1 << 20 };
    for _ in 0..2 {
        let (recorder, draft) =
            Recorder::start(&config, &header(), Counter::default(), Counter::default()).expect("starts");
        drop((recorder, draft));
        assert!(!config.path.exists());
    }
}

#[test]
fn an_ended_trace_holds_all_that_was_handed_over() {
    let folder = tempfile::tempdir().expect("folder");
    let config = RecordConfig { path: folder.path().join("t"), bytes_max: 1 << 20 };
    let dropped = Counter::default();
    let (mut recorder, draft) =
        Recorder::start(&config, &header(), Counter::default(), dropped.clone()).expect("starts");
    draft.keep();
    (0..800).for_each(|at| recorder.note(step(at)));
    recorder.end();
    let text = fs::read_to_string(&config.path).expect("text");
    assert_eq!((text.lines().count(), dropped.get()), (801, 0));
    assert!(text.lines().last().is_some_and(|line| line.starts_with(r#"{"kind":"step","at":799"#)));
}
