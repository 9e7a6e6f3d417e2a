//! A prompt cut in two anywhere gives the bits of the prompt in one piece, and so do the tokens that follow it.

use weir_models::Row;

use crate::support::{Loaded, Random};

/// Logits behind a prompt computed in the pieces that `cuts` make of it (ascending, inside the prompt), and behind each of
/// the tokens of `next`, which come one at a time. A stranger of `company` tokens shares every step, if it is not empty.
fn logits(ours: &mut Loaded, prompt: &[u32], cuts: &[usize], next: &[u32], company: &[u32]) -> Vec<u32> {
    // Its blocks lie apart from the stranger's and in no order.
    let blocks: Vec<u32> = (0..20).map(|block| 3 + (7 * block) % 20).collect();
    let stranger: Vec<u32> = (24..30).collect();
    let (mut ids, mut ends) = (prompt.to_vec(), cuts.to_vec());
    ids.extend(next);
    ends.extend(prompt.len()..=ids.len());
    let (mut from, mut out, mut bits) = (0, Vec::new(), Vec::new());
    for to in ends {
        let last = to >= prompt.len();
        let mut rows = vec![Row { ids: &ids[from..to], position: from as u32, blocks: &blocks, logits: last }];
        if !company.is_empty() {
            rows.insert(0, Row { ids: company, position: 0, blocks: &stranger, logits: false });
        }
        ours.llama.forward(&rows, &ours.kv, &mut out).unwrap();
        bits.extend(out.iter().map(|x| x.to_bits()));
        from = to;
    }
    bits
}

mod proofs {
    use super::{Random, logits};
    use crate::decoders::models_to_batch;
    use crate::real::{chats, model};
    use crate::support::load;

    fn full() -> bool {
        std::env::var("WEIR_PROOFS").is_ok_and(|size| size == "full")
    }

    #[test]
    fn every_boundary_of_a_tiny_prompt_gives_the_same_bits() {
        let mut boundaries = 0;
        for (folder, architecture) in models_to_batch() {
            let ids = Random(31).ids(134, 100);
            let (prompt, next) = ids.split_at(130);
            let expected = logits(&mut load(folder.path(), 1), prompt, &[], next, &[]);
            for threads in [1, 2] {
                let mut ours = load(folder.path(), threads);
                for boundary in 1..prompt.len() {
                    let company = Random(boundary as u64).ids(boundary % 3 * 11, 100);
                    let got = logits(&mut ours, prompt, &[boundary], next, &company);
                    assert!(got == expected, "{architecture}, {threads} threads, cut at {boundary}");
                    boundaries += 1;
                }
            }
        }
        println!("figure=1.tiny_boundaries_equal value={boundaries}");
    }

    #[test]
    fn sampled_boundaries_of_smollm2_prompts_give_the_same_bits() {
        let Some(folder) = model("smollm2-135m-instruct") else { return };
        let (prompts, cuts) = if full() { (usize::MAX, 8) } else { (3, 2) };
        let mut random = Random(32);
        let (mut one, mut two) = (load(&folder, 1), load(&folder, 2));
        let (mut boundaries, mut seen) = (0, 0);
        for prompt in chats().into_iter().filter(|ids| ids.len() <= 250).take(prompts) {
            let next = random.ids(2, 40_000);
            let expected = logits(&mut two, &prompt, &[], &next, &[]);
            seen += 1;
            for cut in 0..cuts {
                let boundary = 1 + random.below(prompt.len() as u32 - 1) as usize;
                let company = random.ids(cut % 2 * 5, 40_000);
                let ours = if cut % 4 == 3 { &mut one } else { &mut two };
                let got = logits(ours, &prompt, &[boundary], &next, &company);
                assert!(got == expected, "{} tokens, cut at {boundary}", prompt.len());
                boundaries += 1;
            }
        }
        println!("figure=1.smollm2_boundaries_equal value={boundaries} prompts={seen}");
    }
}
