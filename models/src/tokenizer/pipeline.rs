//! `tokenizers` pipelines that share one vocabulary.
//!
//! Three pipelines are needed (control tokens on, off, off in the middle of a text). A vocabulary of 2^17 tokens takes tens of
//! megabytes, so the model is behind an `Arc` and each pipeline owns only its small parts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::{DecoderWrapper, Model, NormalizerWrapper, PostProcessorWrapper, Token, TokenizerImpl};

use super::spm::Spm;
use super::words::Cutter;

/// A pipeline over the shared vocabulary.
pub(crate) type Pipeline = TokenizerImpl<SharedModel, NormalizerWrapper, Cutter, PostProcessorWrapper, DecoderWrapper>;

/// The step that turns a pre-token into ids.
#[derive(Clone, Debug)]
pub(crate) struct SharedModel(Arc<AnyModel>);

#[derive(Debug)]
enum AnyModel {
    Stock(ModelWrapper),
    Spm(Spm),
}

impl From<ModelWrapper> for SharedModel {
    fn from(mut model: ModelWrapper) -> Self {
        // The word cache of `tokenizers` is shared by all callers: a tenant could time which words another one used.
        match &mut model {
            ModelWrapper::BPE(bpe) => bpe.resize_cache(0),
            ModelWrapper::Unigram(unigram) => unigram.resize_cache(0),
            ModelWrapper::WordPiece(_) | ModelWrapper::WordLevel(_) => {}
        }
        Self(Arc::new(AnyModel::Stock(model)))
    }
}

impl From<Spm> for SharedModel {
    fn from(spm: Spm) -> Self {
        Self(Arc::new(AnyModel::Spm(spm)))
    }
}

impl Model for SharedModel {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, sequence: &str) -> tokenizers::Result<Vec<Token>> {
        match &*self.0 {
            AnyModel::Stock(model) => model.tokenize(sequence),
            AnyModel::Spm(spm) => Ok(spm
                .encode(sequence)
                .into_iter()
                .map(|(id, offsets)| Token { id, value: String::new(), offsets })
                .collect()),
        }
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        match &*self.0 {
            AnyModel::Stock(model) => model.token_to_id(token),
            AnyModel::Spm(spm) => spm.ids.get(token).copied(),
        }
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        match &*self.0 {
            AnyModel::Stock(model) => model.id_to_token(id),
            AnyModel::Spm(spm) => spm.pieces.get(id as usize).cloned(),
        }
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        match &*self.0 {
            AnyModel::Stock(model) => model.get_vocab(),
            AnyModel::Spm(spm) => spm.ids.clone(),
        }
    }

    fn get_vocab_size(&self) -> usize {
        match &*self.0 {
            AnyModel::Stock(model) => model.get_vocab_size(),
            AnyModel::Spm(spm) => spm.pieces.len(),
        }
    }

    fn save(&self, _: &Path, _: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("vocabularies are not written".into())
    }

    fn get_trainer(&self) -> TrainerWrapper {
        unreachable!("nothing here trains")
    }
}
