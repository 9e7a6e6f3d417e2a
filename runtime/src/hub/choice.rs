//! Which files of a repository are a model. The same choice is made from a listing and from a folder in the cache.

use std::path::Path;

use super::HubError;
use super::wanted::{Wanted, is_gguf};

/// The index of weights that lie in several files.
pub(super) const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
/// Taken where a repository has them.
const OPTIONAL: [&str; 7] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "sentence_bert_config.json",
];
/// How many names an error lists.
const LISTED_MAX: usize = 24;

/// The files that make a model.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// One GGUF file.
    Gguf(String),
    /// A folder: these files, weights last; if `sharded`, then those its [`INDEX`] names, too.
    Folder { files: Vec<String>, sharded: bool },
}

/// Why a set of files is no model.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lack {
    Missing(Vec<String>),
    Nothing,
    SeveralGguf(Vec<String>),
    SeveralSafetensors,
}

/// Chooses by names alone. `models` opens an index before `model.safetensors` before a lone other file, and so it is
/// chosen here: repositories that carry their weights twice (`consolidated.safetensors`) are downloaded once.
pub(super) fn choose(names: &[String], file: Option<&str>) -> Result<Choice, Lack> {
    let has = |name: &str| names.iter().any(|n| n == name);
    if let Some(file) = file {
        return if has(file) { Ok(Choice::Gguf(file.to_owned())) } else { Err(Lack::Missing(vec![file.to_owned()])) };
    }
    let safetensors: Vec<&String> = names.iter().filter(|n| !n.contains('/') && n.ends_with(".safetensors")).collect();
    if safetensors.is_empty() && !has(INDEX) {
        let mut ggufs: Vec<String> = names.iter().filter(|n| is_gguf(n)).cloned().collect();
        return match ggufs.len() {
            // A config without weights is a model of which the weights are missing, not a repository of something else.
            0 if has(CONFIG) => Err(Lack::Missing(vec![WEIGHTS.to_owned()])),
            0 => Err(Lack::Nothing),
            1 => Ok(Choice::Gguf(ggufs.remove(0))),
            _ => Err(Lack::SeveralGguf(ggufs)),
        };
    }
    let missing: Vec<String> = [CONFIG, TOKENIZER].into_iter().filter(|n| !has(n)).map(str::to_owned).collect();
    if !missing.is_empty() {
        return Err(Lack::Missing(missing));
    }
    let mut files = vec![CONFIG.to_owned(), TOKENIZER.to_owned()];
    files.extend(OPTIONAL.iter().filter(|n| has(n)).map(|n| n.to_string()));
    files.extend(names.iter().filter(|n| is_pooling(n)).cloned());
    let sharded = has(INDEX);
    match (sharded, has(WEIGHTS), safetensors.as_slice()) {
        (true, _, _) => files.push(INDEX.to_owned()),
        (false, true, _) => files.push(WEIGHTS.to_owned()),
        (false, false, [only]) => files.push(only.to_string()),
        _ => return Err(Lack::SeveralSafetensors),
    }
    Ok(Choice::Folder { files, sharded })
}

/// sentence-transformers writes a pooling module as `<n>_Pooling/config.json`; `1_Pooling` as a rule.
fn is_pooling(name: &str) -> bool {
    matches!(name.split_once('/'), Some((folder, CONFIG)) if folder.ends_with("_Pooling"))
}

impl Lack {
    /// As an error about a repository on the hub.
    pub(super) fn online(self, wanted: &Wanted, endpoint: &str) -> HubError {
        let repo = wanted.to_string();
        match self {
            Lack::Missing(names) if wanted.file().is_some() => {
                HubError::NotFound { endpoint: endpoint.to_owned(), what: format!("{} of {repo}", names.join(", ")) }
            }
            Lack::SeveralGguf(files) => HubError::SeveralGguf { repo, files: bounded(files) },
            lack => HubError::NoUsableFiles { repo, reason: lack.reason() },
        }
    }

    /// As an error about a folder in the cache.
    pub(super) fn offline(self, wanted: &Wanted, cache: &Path) -> HubError {
        let (repo, cache) = (wanted.to_string(), cache.to_owned());
        match self {
            Lack::SeveralGguf(files) => HubError::SeveralGguf { repo, files: bounded(files) },
            Lack::Missing(names) => HubError::OfflineMissing { cache, repo, missing: names.join(" and no ") },
            Lack::Nothing => HubError::OfflineMissing { cache, repo, missing: "model files".into() },
            lack => HubError::NoUsableFiles { repo, reason: lack.reason() },
        }
    }

    fn reason(self) -> String {
        match self {
            Lack::Missing(names) => format!("no {}", names.join(" and no ")),
            Lack::Nothing => "neither *.safetensors nor *.gguf".into(),
            Lack::SeveralGguf(_) => "several *.gguf".into(),
            Lack::SeveralSafetensors => format!("several *.safetensors but no {INDEX}"),
        }
    }
}

fn bounded(mut names: Vec<String>) -> Vec<String> {
    let more = names.len().saturating_sub(LISTED_MAX);
    if more > 0 {
        names.truncate(LISTED_MAX);
        names.push(format!("and {more} more"));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], file: Option<&str>) -> Result<Choice, Lack> {
        choose(&names.iter().map(|n| n.to_string()).collect::<Vec<_>>(), file)
    }

    fn folder(files: &[&str], sharded: bool) -> Result<Choice, Lack> {
        Ok(Choice::Folder { files: files.iter().map(|n| n.to_string()).collect(), sharded })
    }

    #[test]
    fn a_folder_is_its_small_files_and_then_its_weights() {
        let names = [
            "model.safetensors",
            "pytorch_model.bin",
            "onnx/model.onnx",
            "README.md",
            "1_Pooling/config.json",
            "modules.json",
            "tokenizer.json",
            "config.json",
            "onnx/config.json",
        ];
        let expected = ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "model.safetensors"];
        assert_eq!(chosen(&names, None), folder(&expected, false));
    }

    #[test]
    fn weights_are_taken_once() {
        let base = ["config.json", "tokenizer.json"];
        let with = |more: &[&'static str]| [&base[..], more].concat();
        let sharded = with(&["model.safetensors.index.json"]);
        assert_eq!(
            chosen(&with(&["consolidated.safetensors", "model-1.safetensors", INDEX]), None),
            folder(&sharded, true)
        );
        let single = with(&["model.safetensors"]);
        assert_eq!(chosen(&with(&["consolidated.safetensors", "model.safetensors"]), None), folder(&single, false));
        let other = with(&["other.safetensors"]);
        assert_eq!(chosen(&other, None), folder(&other, false));
        assert_eq!(chosen(&with(&["a.safetensors", "b.safetensors"]), None), Err(Lack::SeveralSafetensors));
    }

    #[test]
    fn a_gguf_is_taken_when_it_is_the_one() {
        assert_eq!(chosen(&["README.md", "m.gguf"], None), Ok(Choice::Gguf("m.gguf".into())));
        let both = ["q4/m.gguf", "q8/m.gguf"];
        assert_eq!(chosen(&both, Some("q8/m.gguf")), Ok(Choice::Gguf("q8/m.gguf".into())));
        assert_eq!(chosen(&both, None), Err(Lack::SeveralGguf(both.map(str::to_owned).to_vec())));
        assert_eq!(chosen(&both, Some("m.gguf")), Err(Lack::Missing(vec!["m.gguf".into()])));
    }

    #[test]
    fn what_is_lacking_is_named() {
        assert_eq!(chosen(&["README.md"], None), Err(Lack::Nothing));
        assert_eq!(chosen(&["config.json", "tokenizer.json"], None), Err(Lack::Missing(vec![WEIGHTS.into()])));
        let both = vec!["config.json".to_owned(), "tokenizer.json".to_owned()];
        assert_eq!(chosen(&["model.safetensors"], None), Err(Lack::Missing(both)));
        assert_eq!(bounded((0..30).map(|n| n.to_string()).collect()).last().map(String::as_str), Some("and 6 more"));
    }
}
