//! The requests that go out.

use serde::Serialize;

use crate::target::Target;

#[derive(Serialize)]
struct GenerationBody<'a> {
    model: &'a str,
    #[serde(flatten)]
    prompt: Prompt<'a>,
    max_tokens: u32,
    temperature: f32,
    ignore_eos: bool,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
}

/// What is to be continued.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Prompt<'a> {
    Prompt(&'a [u32]),
    Messages([Message<'a>; 1]),
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'a str,
    content: &'a str,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
    #[serde(skip_serializing_if = "is_false")]
    continuous_usage_stats: bool,
}

fn is_false(value: &bool) -> bool {
    !*value
}

#[derive(Serialize)]
struct EmbeddingBody<'a> {
    model: &'a str,
    input: &'a [Vec<u32>],
    /// What the official clients ask for; it is also the cheaper one to write and to read.
    encoding_format: &'a str,
}

/// What all requests to a server on behalf of one tenant have in common.
pub(crate) struct Form<'a> {
    pub(crate) target: &'a Target,
    pub(crate) key: &'a str,
    pub(crate) model: &'a str,
}

impl Form<'_> {
    /// A completion of exactly `output_tokens` tokens. `streaming` says whether it is streamed, and whether then with a
    /// running count of tokens.
    pub(crate) fn completion(&self, prompt: &[u32], output_tokens: u32, streaming: Option<bool>) -> Vec<u8> {
        self.generation("/v1/completions", Prompt::Prompt(prompt), output_tokens, streaming)
    }

    /// The answer to one user message, as [`Form::completion`].
    pub(crate) fn chat(&self, content: &str, output_tokens: u32, streaming: Option<bool>) -> Vec<u8> {
        let messages = [Message { role: "user", content }];
        self.generation("/v1/chat/completions", Prompt::Messages(messages), output_tokens, streaming)
    }

    fn generation(&self, path: &str, prompt: Prompt<'_>, max_tokens: u32, streaming: Option<bool>) -> Vec<u8> {
        let options = |continuous_usage_stats| StreamOptions { include_usage: true, continuous_usage_stats };
        let body = GenerationBody {
            model: self.model,
            prompt,
            max_tokens,
            temperature: 0.0,
            ignore_eos: true,
            stream: streaming.is_some(),
            stream_options: streaming.map(options),
        };
        self.post(path, &body)
    }

    pub(crate) fn embeddings(&self, inputs: &[Vec<u32>]) -> Vec<u8> {
        self.post("/v1/embeddings", &EmbeddingBody { model: self.model, input: inputs, encoding_format: "base64" })
    }

    pub(crate) fn models(&self) -> Vec<u8> {
        let mut head = self.head("GET", "/v1/models");
        head.push_str("\r\n");
        head.into_bytes()
    }

    fn post(&self, path: &str, body: &impl Serialize) -> Vec<u8> {
        let body = serde_json::to_vec(body).expect("strings and numbers always serialise");
        let head = self.head("POST", path);
        let mut request =
            format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        request.extend_from_slice(&body);
        request
    }

    /// The head without the empty line that ends it.
    fn head(&self, method: &str, path: &str) -> String {
        let authorization =
            if self.key.is_empty() { String::new() } else { format!("Authorization: Bearer {}\r\n", self.key) };
        format!(
            "{method} {}{path} HTTP/1.1\r\nHost: {}\r\n{authorization}Accept: */*\r\n",
            self.target.base,
            self.target.authority()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target { host: "127.0.0.1".into(), port: 8000, base: "/api".into() }
    }

    /// The body of a request, of which all else has been checked.
    fn body(request: Vec<u8>) -> String {
        let text = String::from_utf8(request).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{head}");
        body.to_string()
    }

    #[test]
    fn a_completion_request_is_exactly_this() {
        let target = target();
        let form = Form { target: &target, key: "k", model: "m" };
        let text = String::from_utf8(form.completion(&[5, 6], 3, Some(true))).unwrap();
        let body = concat!(
            r#"{"model":"m","prompt":[5,6],"max_tokens":3,"temperature":0.0,"ignore_eos":true,"stream":true,"#,
            r#""stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#
        );
        let head =
            "POST /api/v1/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAuthorization: Bearer k\r\nAccept: */*\r\n";
        assert_eq!(
            text,
            format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        );
    }

    #[test]
    fn other_requests_differ_where_they_must() {
        let target = target();
        let form = Form { target: &target, key: "k", model: "m" };
        assert_eq!(
            body(form.completion(&[5], 3, None)),
            r#"{"model":"m","prompt":[5],"max_tokens":3,"temperature":0.0,"ignore_eos":true,"stream":false}"#
        );
        assert_eq!(
            body(form.chat("hi", 3, Some(false))),
            concat!(
                r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":3,"temperature":0.0,"#,
                r#""ignore_eos":true,"stream":true,"stream_options":{"include_usage":true}}"#
            )
        );
        let chat = form.chat("hi", 3, Some(false));
        assert!(chat.starts_with(b"POST /api/v1/chat/completions HTTP/1.1\r\n"));
        let embeddings = r#"{"model":"m","input":[[1,2],[3]],"encoding_format":"base64"}"#;
        assert_eq!(body(form.embeddings(&[vec![1, 2], vec![3]])), embeddings);
    }

    #[test]
    fn no_key_sends_no_authorization() {
        let form = Form { target: &target(), key: "", model: "m" };
        let text = String::from_utf8(form.models()).unwrap();
        assert_eq!(text, "GET /api/v1/models HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept: */*\r\n\r\n");
    }
}
