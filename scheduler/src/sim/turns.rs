//! Conversations: each turn's prompt repeats all that came before it.

use super::client::Client;
use super::rng::mix;
use super::scenario::{Ask, Source};
use super::world::World;

impl World<'_> {
    /// The source's next turn. All its text, answers included, is the conversation's, so that the next turn finds it in the cache.
    pub(super) fn turn(&mut self, source: &Source, client: &mut Client) {
        let Ask::Turns { first, more, drawn, turns } = source.ask else {
            unreachable!("only a conversation has turns");
        };
        let turn = self.turns.entry(client.source).or_insert(0);
        let (conversation, nth) = (*turn / turns.max(1), *turn % turns.max(1));
        *turn += 1;
        client.prompt_len = first + nth * more;
        client.stop = self.rng.between(drawn.0, drawn.1);
        // Mixed once more, for blocks are numbered by another such mix: the fifth block of source 3 is not the third of source 5.
        client.text.beginning = mix(mix(client.source as u64) ^ u64::from(conversation));
        client.text.shared_blocks = u32::MAX;
        client.most = drawn.1;
        client.uses_cache = true;
    }
}
