//! `weir chat`: a conversation with a running server, one line a turn, from a terminal or a pipe.

use std::{
    io::{self, BufRead, BufReader, IsTerminal, Write},
    path::PathBuf,
};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};

use super::{
    client::{Server, client_key},
    put,
};
use crate::config::DEMO_KEY_FILE;

/// Longest event that is read.
const LINE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct ChatArgs {
    /// The server
    #[arg(long, env = "WEIR_URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// The model [default: the first one that chats]
    #[arg(long)]
    model: Option<String>,
    /// What the model is told before the conversation
    #[arg(long)]
    system: Option<String>,
    /// Most tokens of one answer
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// 0 gives the same answers every time
    #[arg(long)]
    temperature: Option<f32>,
    /// File with the key, unless WEIR_API_KEY holds it
    #[arg(long, value_name = "FILE", default_value = DEMO_KEY_FILE)]
    key_file: PathBuf,
}

pub(super) fn run(args: ChatArgs) -> anyhow::Result<()> {
    let key = client_key(&args.key_file)?;
    let server = Server::new(&args.url, &key);
    let model = match args.model {
        Some(model) => model,
        None => first_chat_model_of(&server)?,
    };
    let mut talk = Conversation { model, messages: Vec::new(), options: Vec::new() };
    talk.options.extend(args.max_tokens.map(|n| ("max_tokens", json!(n))));
    talk.options.extend(args.temperature.map(|t| ("temperature", json!(t))));
    let system = args.system.map(|text| json!({"role": "system", "content": text}));
    talk.messages.extend(system.clone());
    let terminal = io::stdin().is_terminal();
    if terminal {
        put(&format!("Talking to {}. /new starts over, /exit or Ctrl-D ends.\n", talk.model));
    }
    let mut input = io::stdin().lock();
    loop {
        if terminal {
            put("\n> ");
        }
        let mut line = String::new();
        if input.read_line(&mut line).context("standard input")? == 0 {
            return Ok(());
        }
        match line.trim() {
            "" => continue,
            "/exit" | "/quit" => return Ok(()),
            "/new" => {
                talk.messages.clear();
                talk.messages.extend(system.clone());
                continue;
            }
            text => match talk.turn(&server, text) {
                Ok(()) => {}
                // At a terminal the next line may do better; a script should stop.
                Err(error) if terminal => eprintln!("weir: {error:#}"),
                Err(error) => return Err(error),
            },
        }
    }
}

struct Conversation {
    model: String,
    messages: Vec<Value>,
    options: Vec<(&'static str, Value)>,
}

impl Conversation {
    /// Says something and shows the answer as it comes. A turn that fails leaves nothing behind.
    fn turn(&mut self, server: &Server, text: &str) -> anyhow::Result<()> {
        self.messages.push(json!({"role": "user", "content": text}));
        let mut body = json!({"model": self.model, "messages": self.messages, "stream": true});
        for (name, value) in &self.options {
            body[name] = value.clone();
        }
        let answer = server.post("/v1/chat/completions", &body).and_then(|reader| read_answer(reader, io::stdout()));
        match answer {
            Ok(content) => {
                put("\n");
                self.messages.push(json!({"role": "assistant", "content": content}));
                Ok(())
            }
            Err(error) => {
                self.messages.pop();
                Err(error)
            }
        }
    }
}

/// Shows the text of a stream's events and returns it.
fn read_answer(source: impl io::Read, mut out: impl Write) -> anyhow::Result<String> {
    let mut reader = BufReader::new(source);
    let mut content = String::new();
    loop {
        let mut line = String::new();
        let read =
            io::Read::take(&mut reader, LINE_BYTES_MAX).read_line(&mut line).context("the connection broke off")?;
        if read == 0 {
            bail!("the server ended the answer too early");
        }
        let Some(data) = line.trim_end().strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            return Ok(content);
        }
        let event: Value = serde_json::from_str(data).context("the server sent something else than an event")?;
        if let Some(message) = event["error"]["message"].as_str() {
            bail!("{message}");
        }
        if let Some(text) = event["choices"][0]["delta"]["content"].as_str() {
            content.push_str(text);
            out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")?;
        }
    }
}

fn first_chat_model_of(server: &Server) -> anyhow::Result<String> {
    let list: Value = serde_json::from_reader(server.get("/v1/models")?).context("the list of models")?;
    first_chat_model(&list).context("the server has no model that chats")
}

/// Any model of a server that does not say which of them chat.
fn first_chat_model(list: &Value) -> Option<String> {
    let chats = |model: &&Value| model["weir"]["chats"].as_bool().unwrap_or(true);
    list["data"].as_array()?.iter().find(chats)?["id"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_shown_as_it_comes_and_comments_are_skipped() {
        let events = ": keep-alive\n\n\
            data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"Hél\"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"lo\"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
            data: [DONE]\n\n";
        let mut shown = Vec::new();
        assert_eq!(read_answer(events.as_bytes(), &mut shown).expect("answer"), "Héllo");
        assert_eq!(shown, "Héllo".as_bytes());
    }

    #[test]
    fn an_error_or_an_early_end_is_no_answer() {
        let cases = [
            (
                "data: {\"error\":{\"message\":\"The executor was lost.\"}}\n\ndata: [DONE]\n\n",
                "The executor was lost.",
            ),
            ("data: {\"choices\":[]}\n\n", "too early"),
            ("data: nonsense\n\n", "something else"),
        ];
        for (events, message) in cases {
            let error = read_answer(events.as_bytes(), io::sink()).expect_err("no answer").to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn the_first_model_that_chats_is_taken() {
        let list = json!({"data": [
            {"id": "embed", "weir": {"chats": false}},
            {"id": "chat", "weir": {"chats": true}},
        ]});
        assert_eq!(first_chat_model(&list).as_deref(), Some("chat"));
        assert_eq!(first_chat_model(&json!({"data": [{"id": "any"}]})).as_deref(), Some("any"));
        assert_eq!(first_chat_model(&json!({"data": []})), None);
    }
}
