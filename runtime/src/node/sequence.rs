//! One choice of a request while it runs: the ids it knows, the text it has made, and when it has had enough.

use std::sync::Arc;

use weir_scheduler::{BlockHash, Work};

use crate::{
    codec::{
        Codec,
        hash::BlockChain,
        text::{Released, TextAssembler},
    },
    executor::wire::{OpenSequence, Sampled},
    stream::{FinishReason, TokenLogprob, TopLogprob},
    submission::SamplingParams,
};

/// What a choice is asked to be.
#[derive(Debug, Clone)]
pub(crate) struct SequenceSpec {
    pub(crate) sampling: SamplingParams,
    pub(crate) new_tokens_max: u32,
    pub(crate) min_tokens: u32,
    pub(crate) stop: Vec<String>,
    pub(crate) ignore_eos: bool,
    pub(crate) eos: Arc<[u32]>,
    pub(crate) logprobs: Option<u32>,
}

/// A choice in progress.
pub(crate) struct Sequence {
    spec: SequenceSpec,
    /// The prompt's ids, then the drawn ones.
    tokens: Vec<u32>,
    prompt_len: u32,
    chain: Option<BlockChain>,
    /// Names of the blocks that the tokens fill, as far as they were asked for.
    names: Vec<BlockHash>,
    assembler: TextAssembler,
}

/// What a drawn id led to.
pub(crate) struct Progress {
    pub(crate) released: Released,
    pub(crate) finished: Option<FinishReason>,
}

impl Sequence {
    /// `named` is the chain of the prompt's blocks with the names it gave them.
    pub(crate) fn new(spec: SequenceSpec, prompt: &[u32], named: Option<(BlockChain, Vec<BlockHash>)>) -> Self {
        let assembler = TextAssembler::new(spec.stop.clone());
        let prompt_len = prompt.len() as u32;
        let (chain, names) = named.map_or((None, Vec::new()), |(chain, names)| (Some(chain), names));
        Sequence { spec, tokens: prompt.to_vec(), prompt_len, chain, names, assembler }
    }

    /// What is left to do for an executor that knows nothing of this sequence: every id known by now as a prompt.
    pub(crate) fn rest(&self) -> Work {
        Work::Generate {
            prompt_len: self.tokens.len() as u32,
            new_tokens_max: self.spec.new_tokens_max - self.drawn(),
            hashes: self.names.clone(),
        }
    }

    /// The ids it began with.
    pub(crate) fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_len as usize]
    }

    /// What an executor must know before the first row that it is given.
    pub(crate) fn open(&self, name: u64) -> OpenSequence {
        let banned = if self.spec.ignore_eos { Vec::new() } else { self.spec.eos.to_vec() };
        OpenSequence {
            sequence: name,
            tokens: self.tokens.clone(),
            drawn: self.drawn(),
            sampling: self.spec.sampling.clone(),
            logprobs: self.spec.logprobs,
            min_tokens: self.spec.min_tokens,
            banned,
        }
    }

    /// Ids drawn so far.
    pub(crate) fn drawn(&self) -> u32 {
        self.tokens.len() as u32 - self.prompt_len
    }

    /// The most that it may draw.
    pub(crate) fn new_tokens_max(&self) -> u32 {
        self.spec.new_tokens_max
    }

    /// The names of the full blocks, as far as they were asked for.
    pub(crate) fn names(&self) -> &[BlockHash] {
        &self.names
    }

    /// Takes a drawn id.
    pub(crate) fn advance(&mut self, sampled: &Sampled, codec: &Codec) -> Progress {
        self.tokens.push(sampled.id);
        let drawn = self.drawn();
        if !self.spec.ignore_eos && self.spec.eos.contains(&sampled.id) {
            return Progress { released: self.assembler.finish(), finished: Some(FinishReason::Stop) };
        }
        let logprob = sampled.logprob.map(|logprob| token_logprob(sampled, logprob, codec));
        let stops_count = drawn > self.spec.min_tokens;
        let mut released = self.assembler.push(codec.output_bytes(sampled.id), logprob, stops_count);
        if released.stopped {
            return Progress { released, finished: Some(FinishReason::Stop) };
        }
        if drawn < self.spec.new_tokens_max {
            return Progress { released, finished: None };
        }
        let rest = self.assembler.finish();
        released.text.push_str(&rest.text);
        released.logprobs.extend(rest.logprobs);
        Progress { released, finished: Some(FinishReason::Length) }
    }

    /// It draws no more: the text that was held back, for it might have become a stop string.
    pub(crate) fn cut(&mut self) -> Released {
        self.assembler.finish()
    }

    /// The names of the blocks that became full since the last call.
    pub(crate) fn named_blocks(&mut self, mut named: impl FnMut(BlockHash)) {
        if let Some(chain) = &mut self.chain {
            let names = &mut self.names;
            chain.extend(&self.tokens, |name| {
                names.push(name);
                named(name);
            });
        }
    }
}

fn token_logprob(sampled: &Sampled, logprob: f32, codec: &Codec) -> TokenLogprob {
    let show = |id: u32, logprob: f32| {
        let bytes = codec.token_bytes(id).to_vec();
        TopLogprob { token: String::from_utf8_lossy(&bytes).into_owned(), bytes, logprob }
    };
    TokenLogprob {
        chosen: show(sampled.id, logprob),
        top: sampled.top.iter().map(|&(id, logprob)| show(id, logprob)).collect(),
        text_offset: 0,
    }
}
