//! What steps cost: a machine's by name, or a file that a fit has written.

use std::path::Path;

use serde::{Deserialize, Serialize};
use weir_scheduler::sim::{SimModel, StepCost};
use weir_scheduler::{ModelId, ModelLimits, Nanos};

use super::fit::Fit;

/// Machines that are known by name.
pub const PRESETS: [&str; 1] = ["h200-llama8b"];

/// The version of the file.
const FORMAT: u32 = 1;

/// What the steps of some models cost, and what the models can hold.
#[derive(Clone, Debug)]
pub struct Costs {
    /// What a report calls them.
    pub name: String,
    /// Without a name of its own, a model's cost is for any one model.
    models: Vec<(Option<String>, SimModel)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    models: Vec<ModelCost>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelCost {
    name: String,
    blocks: u32,
    rows_max: u32,
    tokens_max: u32,
    context_len_max: u32,
    step_ns: u64,
    token_ns: u64,
    kilocontext_ns: u64,
    kiloread_ns: u64,
    overhead_ns: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held_out: Option<HeldOut>,
}

/// How good the fit was, for whoever looks at the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeldOut {
    steps: usize,
    error_p50: f64,
    error_p90: f64,
    total: f64,
}

/// Longest a step's part may take, so that sums stay far from the end of 64 bits: a day for a token is a slip of units.
const PART_MAX: u64 = 86_400_000_000_000;

impl Costs {
    /// A machine by name, or what is in a file.
    ///
    /// # Errors
    /// When it is neither, or the file is not one of costs.
    pub fn open(name: &str) -> Result<Costs, String> {
        if name == PRESETS[0] {
            return Ok(Costs { name: name.to_owned(), models: vec![(None, SimModel::h200_llama8b(ModelId(0)))] });
        }
        let text = std::fs::read_to_string(Path::new(name))
            .map_err(|error| format!("{name}: {error}; known by name: {}", PRESETS.join(", ")))?;
        Costs::parse(name, &text)
    }

    fn parse(name: &str, text: &str) -> Result<Costs, String> {
        let document: Document = serde_json::from_str(text).map_err(|error| format!("{name}: {error}"))?;
        if document.format != FORMAT {
            return Err(format!("{name}: format {}; this program reads format {FORMAT}", document.format));
        }
        if document.models.is_empty() {
            return Err(format!("{name}: it holds no model"));
        }
        let mut models = Vec::new();
        for cost in document.models {
            let parts = [cost.step_ns, cost.token_ns, cost.kilocontext_ns, cost.kiloread_ns, cost.overhead_ns];
            if cost.rows_max == 0 || cost.tokens_max == 0 || parts.iter().any(|part| *part > PART_MAX) {
                return Err(format!("{name}: model `{}` has limits or costs that nothing can run with", cost.name));
            }
            // A device on which a step takes no time at all never lets the simulation's clock go on.
            if cost.step_ns == 0 && cost.token_ns == 0 {
                return Err(format!("{name}: steps of model `{}` take no time", cost.name));
            }
            let model = SimModel {
                id: ModelId(0),
                limits: ModelLimits {
                    blocks: cost.blocks,
                    rows_max: cost.rows_max,
                    tokens_max: cost.tokens_max,
                    context_len_max: cost.context_len_max,
                },
                cost: StepCost {
                    step: Nanos(cost.step_ns),
                    token: Nanos(cost.token_ns),
                    kilocontext: Nanos(cost.kilocontext_ns),
                    kiloread: Nanos(cost.kiloread_ns),
                    overhead: Nanos(cost.overhead_ns),
                },
            };
            models.push((Some(cost.name), model));
        }
        Ok(Costs { name: name.to_owned(), models })
    }

    /// What was fitted.
    pub fn fitted(name: &str, fits: &[Fit]) -> Costs {
        let models = fits.iter().map(|fit| (Some(fit.model.clone()), fit.sim_model(ModelId(0)))).collect();
        Costs { name: name.to_owned(), models }
    }

    /// The file that [`Costs::open`] reads.
    pub fn file(fits: &[Fit]) -> String {
        let models = fits.iter().map(|fit| ModelCost {
            name: fit.model.clone(),
            blocks: fit.limits.blocks,
            rows_max: fit.limits.rows_max,
            tokens_max: fit.limits.tokens_max,
            context_len_max: fit.limits.context_len_max,
            step_ns: fit.cost.step.0,
            token_ns: fit.cost.token.0,
            kilocontext_ns: fit.cost.kilocontext.0,
            kiloread_ns: fit.cost.kiloread.0,
            overhead_ns: fit.cost.overhead.0,
            held_out: Some(HeldOut {
                steps: fit.held_out,
                error_p50: rounded(fit.error_p50),
                error_p90: rounded(fit.error_p90),
                total: rounded(fit.total),
            }),
        });
        let document = Document { format: FORMAT, models: models.collect() };
        serde_json::to_string_pretty(&document).expect("numbers and names always serialise") + "\n"
    }

    /// The one model that a workload by name runs on.
    pub(super) fn first(&self) -> SimModel {
        // There is one: neither a file nor a fit is empty.
        self.models[0].1
    }

    /// The cost of a model by its name; one without a name is for all.
    pub(super) fn of(&self, model: &str) -> Result<SimModel, String> {
        let is = |name: &Option<String>| name.as_deref().is_none_or(|name| name == model);
        self.models.iter().find(|(name, _)| is(name)).map(|(_, cost)| *cost).ok_or_else(|| {
            let known: Vec<&str> = self.models.iter().filter_map(|(name, _)| name.as_deref()).collect();
            format!("{}: no cost for model `{model}`; it has {}", self.name, known.join(", "))
        })
    }
}

fn rounded(part: f64) -> f64 {
    (part * 1e6).round() / 1e6
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn costs(step_micros: u64, token_micros: u64) -> Costs {
        let text = format!(
            r#"{{"format":1,"models":[{{"name":"m","blocks":512,"rows_max":16,"tokens_max":512,"context_len_max":4096,
            "step_ns":{},"token_ns":{},"kilocontext_ns":0,"kiloread_ns":0,"overhead_ns":0}}]}}"#,
            step_micros * 1_000,
            token_micros * 1_000
        );
        Costs::parse("test", &text).unwrap()
    }

    #[test]
    fn a_fit_is_read_as_it_was_written() {
        let fit = Fit {
            model: "m".into(),
            limits: ModelLimits { blocks: 1, rows_max: 2, tokens_max: 3, context_len_max: 4 },
            cost: StepCost {
                step: Nanos(5),
                token: Nanos(6),
                kilocontext: Nanos(7),
                kiloread: Nanos(8),
                overhead: Nanos(9),
            },
            fitted: 10,
            aside: 0,
            held_out: 11,
            error_p50: 0.125,
            error_p90: 0.25,
            total: 1.0,
        };
        let text = Costs::file(std::slice::from_ref(&fit));
        let read = Costs::parse("x", &text).unwrap();
        assert_eq!(format!("{:?}", read.of("m").unwrap()), format!("{:?}", fit.sim_model(ModelId(0))));
        assert!(read.of("n").unwrap_err().contains("it has m"));
        assert!(Costs::open(PRESETS[0]).unwrap().of("whatever").is_ok());
    }

    #[test]
    fn files_that_nothing_can_run_with_are_refused() {
        let good = Costs::file(&[]);
        assert!(Costs::parse("x", &good).unwrap_err().contains("no model"));
        for (text, part) in [
            ("{}", "missing field"),
            (r#"{"format":2,"models":[]}"#, "format 2"),
            (r#"{"format":1,"models":[],"text":1}"#, "unknown field"),
        ] {
            let error = Costs::parse("x", text).unwrap_err();
            assert!(error.contains(part) && error.starts_with("x: "), "{error}");
        }
        let error = Costs::open("/nonexistent").unwrap_err();
        assert!(error.contains("h200-llama8b"), "{error}");
    }
}
