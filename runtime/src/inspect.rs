//! Models from outside, opened first where they can do no harm.
//!
//! [`inspect`] opens all that the server would open of a model (headers, configuration, tokenizer, template) and tries it on a
//! few texts. [`inspect_apart`] has that done by a process of its own, which takes limits upon itself before it reads a byte
//! ([`confine`]) and has none of this process's environment. Only what came through there is opened by the server. A file that
//! makes the other process die, hang or eat memory is an error that says so.
//!
//! Limits are on CPU time, not on time, wherever that is enough: an honest model must pass on a busy machine, too.

use std::{
    fs, io,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitStatus},
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use weir_models::{ModelError, ModelInfo, ModelSource};

use crate::{
    child::{self, Heard},
    codec::{Codec, CodecError, template::TemplateError},
    config::ExecutorMode,
    submission::ChatMessage,
};

/// CPU seconds of an inspection. The largest vocabularies take about two.
const CPU_SECONDS_MAX: u64 = 20;
/// Time after which an inspection is given up, whatever it is waiting for.
const WALL_MAX: Duration = Duration::from_secs(60);
/// Address space beyond the model's files: the program, its stacks, and a vocabulary out of a GGUF header.
const ADDRESS_SLACK: u64 = 1 << 30;
/// Address space for each byte of a JSON file, which becomes maps of strings.
const ADDRESS_PER_JSON_BYTE: u64 = 24;
/// Files open at once. Weight files are mapped and closed.
const FILES_OPEN_MAX: u64 = 64;
/// Entries of a model's folder whose sizes are added up.
const ENTRIES_MAX: usize = 1 << 12;
/// Bytes of each text that a tokenizer is tried on.
const PROBE_LEN: usize = 16 << 10;
/// What those texts repeat: rules that cost more than they should do so on long runs.
const PROBES: [&str; 14] =
    ["a", "A", " ", "\n", "1", "!", "'", "é", "日", "\u{200d}", "aA1 ", "\t\n", "ab", "the quick brown fox, "];

/// What kind of fault a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelFault {
    /// A file is missing, damaged, or contradicts another.
    Invalid,
    /// It asks for something that is not built.
    Unsupported,
    /// Inspecting it took more time or memory than any honest model needs.
    TooCostly,
}

/// A model that is not served, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ModelRefusal {
    /// Its kind.
    pub fault: ModelFault,
    /// For people; names files of the model.
    pub message: String,
}

/// What an inspection found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// What the model is.
    pub info: ModelInfo,
    /// It can be given a conversation.
    pub has_chat_template: bool,
}

/// The answer of an inspecting process: one line of JSON on standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Sound(Box<Inspection>),
    Refused(ModelRefusal),
}

/// An inspection that did not end well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InspectError {
    /// The model is at fault.
    #[error(transparent)]
    Refused(#[from] ModelRefusal),
    /// The model was not looked at.
    #[error("the inspection did not start: {0}")]
    NotStarted(String),
}

impl From<ModelError> for ModelRefusal {
    fn from(error: ModelError) -> Self {
        let fault = match &error {
            ModelError::Unsupported { .. } | ModelError::TensorType { .. } | ModelError::TensorUnused { .. } => {
                ModelFault::Unsupported
            }
            _ => ModelFault::Invalid,
        };
        ModelRefusal { fault, message: error.to_string() }
    }
}

impl From<CodecError> for ModelRefusal {
    fn from(error: CodecError) -> Self {
        let fault = match &error {
            CodecError::Template(TemplateError::TooLarge(_)) => ModelFault::TooCostly,
            _ => ModelFault::Invalid,
        };
        refuse(fault, error.to_string())
    }
}

fn refuse(fault: ModelFault, message: impl Into<String>) -> ModelRefusal {
    ModelRefusal { fault, message: message.into() }
}

/// Opens all of a model but its weights, in this process, and tries it.
///
/// # Errors
/// What is wrong with it.
pub fn inspect(path: &Path) -> Result<Inspection, ModelRefusal> {
    let source = ModelSource::open(path)?;
    let tokenizer = source.tokenizer()?;
    let template = source.chat_template();
    let codec = Codec::new(tokenizer, template.as_ref())?;
    let vocab_size = source.info().vocab_size;
    for probe in PROBES {
        let ids = codec.encode_text(&probe.repeat(PROBE_LEN / probe.len()))?;
        if let Some(id) = ids.iter().find(|id| **id >= vocab_size) {
            let message = format!("tokenizer: it gives the id {id}, the weights have rows for {vocab_size}");
            return Err(refuse(ModelFault::Invalid, message));
        }
    }
    if codec.has_template() {
        let message = ChatMessage { role: "user".into(), content: "Hello".into(), name: None };
        match codec.encode_chat(&[message]) {
            // A template may refuse a conversation, this one too: completions are still to be had.
            Ok(_) | Err(CodecError::Template(TemplateError::Refused(_))) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Inspection { info: source.info().clone(), has_chat_template: codec.has_template() })
}

/// Limits this process for good to what inspecting the model at `path` may take. What it finds may be printed into a file
/// only if it `may_write` any.
///
/// # Errors
/// When the system refuses a limit.
pub fn confine(path: &Path, may_write: bool) -> io::Result<()> {
    let size = Sizes::of(path);
    let address =
        ADDRESS_SLACK.saturating_add(size.weights).saturating_add(size.json.saturating_mul(ADDRESS_PER_JSON_BYTE));
    for (resource, limit) in [
        (Resource::As, address),
        (Resource::Cpu, CPU_SECONDS_MAX),
        (Resource::Nofile, FILES_OPEN_MAX),
        (Resource::Core, 0),
        (Resource::Fsize, if may_write { u64::MAX } else { 0 }),
    ] {
        // Whoever started this process may have set narrower limits, which cannot be widened again.
        let limit = getrlimit(resource).maximum.map_or(limit, |narrower| narrower.min(limit));
        let limit = Some(limit).filter(|limit| *limit != u64::MAX);
        setrlimit(resource, Rlimit { current: limit, maximum: limit })?;
    }
    Ok(())
}

/// Bytes of a model's files. What cannot be read counts for nothing: the inspection will say so.
#[derive(Debug, Default)]
struct Sizes {
    weights: u64,
    json: u64,
}

impl Sizes {
    fn of(path: &Path) -> Self {
        let mut sizes = Sizes::default();
        match fs::read_dir(path) {
            Ok(entries) => {
                entries.take(ENTRIES_MAX).filter_map(Result::ok).for_each(|entry| sizes.add(&entry.path()));
            }
            Err(_) => sizes.add(path),
        }
        sizes
    }

    fn add(&mut self, path: &Path) {
        let Ok(metadata) = fs::metadata(path) else { return };
        let of_kind = match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => &mut self.json,
            _ => &mut self.weights,
        };
        *of_kind = of_kind.saturating_add(if metadata.is_file() { metadata.len() } else { 0 });
    }
}

/// Body of an inspecting process: the line for [`inspect_apart`], and whether the model is sound.
pub fn answer(path: &Path) -> (String, Result<Inspection, ModelRefusal>) {
    let found = inspect(path);
    let answer = match found.clone() {
        Ok(inspection) => Answer::Sound(Box::new(inspection)),
        Err(refusal) => Answer::Refused(refusal),
    };
    (serde_json::to_string(&answer).expect("an answer is plain data"), found)
}

/// Inspects the model at `path` in a process of its own, where executors are processes: their program run as
/// `program inspect --json PATH`. Where they are threads, in this one.
///
/// # Errors
/// What is wrong with the model, or why it was not looked at.
pub fn inspect_apart(mode: &ExecutorMode, path: &Path) -> Result<Inspection, InspectError> {
    let ExecutorMode::Process { program, .. } = mode else { return Ok(inspect(path)?) };
    let not_started = |error: io::Error| InspectError::NotStarted(error.to_string());
    let path = std::path::absolute(path).map_err(not_started)?;
    let mut command = Command::new(program);
    // No secrets, and nothing that changes what a library does.
    command.args(["inspect", "--json"]).arg(path).env_clear().current_dir("/");
    let Heard { status, said, complained } = child::ask(&mut command, WALL_MAX).map_err(not_started)?;
    let Some(status) = status else {
        let message = format!("the model's files kept the inspecting process busy for {} s", WALL_MAX.as_secs());
        return Err(refuse(ModelFault::TooCostly, message).into());
    };
    match serde_json::from_str(&said) {
        Ok(Answer::Sound(inspection)) if status.success() => Ok(*inspection),
        Ok(Answer::Refused(refusal)) => Err(refusal.into()),
        _ => Err(how_it_died(status, &complained).into()),
    }
}

fn how_it_died(status: ExitStatus, complained: &str) -> ModelRefusal {
    const SIGXCPU: i32 = 24;
    const SIGKILL: i32 = 9;
    match status.signal() {
        // The kernel kills at the hard limit, which is the same.
        Some(SIGXCPU | SIGKILL) => refuse(
            ModelFault::TooCostly,
            format!("the model's files made the inspecting process exceed its CPU time of {CPU_SECONDS_MAX} s"),
        ),
        _ if complained.contains("memory allocation of") => {
            refuse(ModelFault::TooCostly, "the model's files made the inspecting process exceed its memory")
        }
        _ => refuse(
            ModelFault::Invalid,
            format!("the model's files made the inspecting process end without a word ({status})"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that behaves as the shell script says, for any arguments.
    fn program(script: &str) -> (tempfile::TempDir, ExecutorMode) {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("program");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("chmod");
        (folder, ExecutorMode::Process { program: path, args: Vec::new() })
    }

    fn refusal(script: &str) -> ModelRefusal {
        let (_folder, mode) = program(script);
        match inspect_apart(&mode, Path::new("/nowhere")) {
            Err(InspectError::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_process_that_dies_is_an_error_that_says_how() {
        let died = refusal("kill -SEGV $$");
        assert_eq!(died.fault, ModelFault::Invalid);
        assert!(died.message.contains("without a word"), "{}", died.message);
        let cpu = refusal("kill -XCPU $$");
        assert_eq!(cpu.fault, ModelFault::TooCostly);
        assert!(cpu.message.contains("CPU time"), "{}", cpu.message);
        let memory = refusal("echo 'memory allocation of 99 bytes failed' >&2; kill -ABRT $$");
        assert_eq!(memory.fault, ModelFault::TooCostly);
        assert!(memory.message.contains("its memory"), "{}", memory.message);
    }

    #[test]
    fn an_answer_counts_only_whole_and_only_from_a_process_that_ended_well() {
        let line = r#"{"refused":{"fault":"unsupported","message":"no"}}"#;
        let told = refusal(&format!("echo '{line}'; exit 1"));
        assert_eq!((told.fault, told.message.as_str()), (ModelFault::Unsupported, "no"));
        assert!(refusal("echo '{'").message.contains("without a word"));
        assert!(refusal("exit 0").message.contains("without a word"));
        // More than is read: the rest of the pipe's readers are gone, so the writer ends.
        assert!(refusal("head -c 1000000 /dev/zero | tr '\\0' x").message.contains("without a word"));
    }

    #[test]
    fn the_process_has_nothing_of_ours() {
        let (folder, mode) = program(
            "echo \"$0 $* $(env | grep -v '^PWD=\\|^_=\\|^SHLVL=\\|^OLDPWD=' | wc -l) $PWD\" > \"$(dirname \"$0\")/seen\"; exit 1",
        );
        let _ = inspect_apart(&mode, Path::new("/some/model"));
        let seen = fs::read_to_string(folder.path().join("seen")).expect("it ran");
        assert!(seen.trim().ends_with("inspect --json /some/model 0 /"), "{seen}");
    }

    #[test]
    fn no_program_is_not_the_models_fault() {
        let mode = ExecutorMode::Process { program: "/nonexistent/weir".into(), args: Vec::new() };
        assert!(matches!(inspect_apart(&mode, Path::new("/m")), Err(InspectError::NotStarted(_))));
    }

    #[test]
    fn threads_inspect_in_place() {
        let found = inspect_apart(&ExecutorMode::Thread, Path::new("/nonexistent/model"));
        let Err(InspectError::Refused(refusal)) = found else { panic!("{found:?}") };
        assert_eq!(refusal.fault, ModelFault::Invalid);
        assert!(refusal.message.contains("/nonexistent/model"), "{}", refusal.message);
    }
}
