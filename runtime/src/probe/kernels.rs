//! `probe kernels`: each CUDA kernel against its CPU body, on the device itself.

use std::io::Write;

use serde_json::json;
use weir_kernels::parity;

use super::{Args, Place, ProbeError, say};

pub(super) fn run(args: &Args, place: Place<'_>, out: &mut dyn Write) -> Result<(), ProbeError> {
    let wanted = |name: &str| args.text("only").is_none_or(|only| name.contains(only));
    let checks: Vec<_> = parity::checks().into_iter().filter(|(name, _)| wanted(name)).collect();
    if args.has("list") {
        checks.iter().for_each(|(name, _)| say(out, &json!({"kind": "check", "name": name})));
        return Ok(());
    }
    let Some(mut runner) = place.runner() else {
        let reason = "this executable runs on the CPU; the kernels are for CUDA";
        say(out, &json!({"kind": "unavailable", "what": "kernels", "reason": reason}));
        return Ok(());
    };
    let (mut findings, mut bad) = (0u32, 0u32);
    for (name, check) in checks {
        let found = match check(&mut *runner) {
            Ok(found) => found,
            Err(error) => {
                // A sticky fault of the device makes all that follow fail, too: each says so.
                bad += 1;
                say(out, &json!({"kind": "finding", "check": name, "error": error.to_string(), "holds": false}));
                continue;
            }
        };
        for finding in found {
            findings += 1;
            bad += u32::from(!finding.holds());
            let line = json!({
                "kind": "finding", "check": name, "case": finding.case, "compared": finding.compared,
                "worst": finding.worst, "bound": finding.bound, "holds": finding.holds(),
            });
            say(out, &line);
        }
    }
    say(out, &json!({"kind": "findings", "findings": findings, "failed": bad}));
    if bad > 0 {
        return Err(ProbeError::Failed(format!("{bad} of {findings} findings do not hold")));
    }
    Ok(())
}
