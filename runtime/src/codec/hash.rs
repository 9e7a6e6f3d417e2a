//! Names for full KV blocks: a keyed hash chain. A block's name covers every token before it, the model, and the
//! tenant's salt, so no tenant can hit, or find out about, another's blocks.

use weir_scheduler::{BLOCK_LEN, BlockHash};

/// Root of one tenant's chains for one model.
#[derive(Debug, Clone)]
pub(crate) struct ChainSalt([u8; 32]);

impl ChainSalt {
    /// `secret` is drawn at start and never leaves the process.
    pub(crate) fn new(secret: &[u8; 32], tenant: u32, model: &str) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(secret);
        hasher.update(&tenant.to_le_bytes());
        hasher.update(model.as_bytes());
        ChainSalt(*hasher.finalize().as_bytes())
    }
}

/// The hash chain of one sequence, fed as its tokens become known.
#[derive(Debug, Clone)]
pub(crate) struct BlockChain {
    salt: ChainSalt,
    head: [u8; 32],
    hashed: usize,
}

impl BlockChain {
    pub(crate) fn new(salt: ChainSalt) -> Self {
        BlockChain { salt, head: [0; 32], hashed: 0 }
    }

    /// The names of the blocks that `tokens` (all known ones, from the first) fill beyond those named before.
    pub(crate) fn extend(&mut self, tokens: &[u32], mut named: impl FnMut(BlockHash)) {
        let block = BLOCK_LEN as usize;
        while tokens.len() >= self.hashed + block {
            // In one piece: the hash takes whole blocks of its own at once, and a few bytes at a time by detours.
            let mut bytes = [0; 32 + 4 * BLOCK_LEN as usize];
            let (head, ids) = bytes.split_at_mut(32);
            head.copy_from_slice(&self.head);
            for (place, id) in ids.chunks_exact_mut(4).zip(&tokens[self.hashed..]) {
                place.copy_from_slice(&id.to_le_bytes());
            }
            self.head = *blake3::keyed_hash(&self.salt.0, &bytes).as_bytes();
            self.hashed += block;
            named(BlockHash(self.head));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(tenant: u32, model: &str, tokens: &[u32]) -> Vec<BlockHash> {
        let mut names = Vec::new();
        BlockChain::new(ChainSalt::new(&[7; 32], tenant, model)).extend(tokens, |h| names.push(h));
        names
    }

    #[test]
    fn names_depend_on_everything_before_and_on_who_asks() {
        let tokens: Vec<u32> = (0..100).collect();
        let base = names(1, "m", &tokens);
        assert_eq!(base.len(), 3);
        let mut other = tokens.clone();
        other[3] = 999;
        let changed = names(1, "m", &other);
        assert!(base.iter().zip(&changed).all(|(a, b)| a != b));
        other = tokens.clone();
        other[40] = 999;
        let later = names(1, "m", &other);
        assert_eq!(base[0], later[0]);
        assert_ne!(base[1], later[1]);
        assert_ne!(base, names(2, "m", &tokens));
        assert_ne!(base, names(1, "n", &tokens));
    }

    #[test]
    fn feeding_in_pieces_gives_the_same_names() {
        let tokens: Vec<u32> = (0..200).collect();
        let mut pieces = Vec::new();
        let mut chain = BlockChain::new(ChainSalt::new(&[7; 32], 1, "m"));
        for len in [1, 31, 32, 33, 150, 200] {
            chain.extend(&tokens[..len], |h| pieces.push(h));
        }
        assert_eq!(pieces, names(1, "m", &tokens));
    }
}
