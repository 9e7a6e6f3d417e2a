//! The environment as a layer: `WEIR_NAME` means `--name`, `WEIR_MODELS` lists models, and `PORT` stands in for
//! `WEIR_PORT`, since that is what hosting platforms set. `DATABASE_URL`, or a file that `DATABASE_URL_FILE` names, stands in for
//! `WEIR_DATABASE`.

use clap::{CommandFactory, FromArgMatches, Parser};

use super::{Layer, settings::Settings};
use crate::identity::SecretSource;

/// The settings alone, so that each variable is parsed exactly as its flag is.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

/// Reads the layer; `get` looks a variable up. A variable that does not parse is named in the error.
pub fn read_env(get: impl Fn(&str) -> Option<String>) -> Result<Layer, String> {
    let command = Flags::command();
    let mut args = Vec::new();
    for argument in command.get_arguments() {
        let Some(flag) = argument.get_long() else { continue };
        let mut name = format!("WEIR_{}", flag.replace('-', "_").to_uppercase());
        let mut value = variable(&get, &name);
        if value.is_none() && flag == "port" {
            name = "PORT".to_owned();
            value = variable(&get, &name);
        }
        if value.is_none() && flag == "database" {
            name = "DATABASE_URL".to_owned();
            let source = SecretSource::from_env(&get, &name).map_err(|e| e.to_string())?;
            let secret = source.map(|source| source.read()).transpose().map_err(|e| e.to_string())?;
            value = secret.map(|secret| secret.reveal().to_owned());
        }
        let Some(value) = value else { continue };
        let arg = format!("--{flag}={value}");
        if let Err(error) = command.clone().try_get_matches_from([&arg]) {
            return Err(format!("environment variable {name}: {}", one_line(&error)));
        }
        args.push(arg);
    }
    let matches = command.try_get_matches_from(args).map_err(|e| one_line(&e))?;
    let flags = Flags::from_arg_matches(&matches).map_err(|e| one_line(&e))?;
    let models = variable(&get, "WEIR_MODELS").unwrap_or_default();
    Ok(Layer { settings: flags.settings, models: models.split_whitespace().map(str::to_owned).collect() })
}

/// A variable that says something. Kubernetes sets `WEIR_PORT=tcp://10.0.0.1:8000` in every pod beside a service named
/// `weir`; that is about the service and none of our business.
fn variable(get: &impl Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    get(name).filter(|value| !value.is_empty() && !value.starts_with("tcp://"))
}

fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    first.trim_start_matches("error: ").to_owned()
}
