//! `probe device`: how fast it copies and multiplies.

use std::io::Write;

use serde_json::json;

use super::{Args, Place, ProbeError, say};

pub(super) fn run(_: &Args, place: Place<'_>, out: &mut dyn Write) -> Result<(), ProbeError> {
    for rate in place.rates()? {
        let line = json!({
            "kind": "rate", "device": place.name(), "name": rate.name, "value": rate.value, "unit": rate.unit,
            "how": rate.how,
        });
        say(out, &line);
    }
    Ok(())
}
