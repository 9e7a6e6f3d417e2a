//! Valid bodies of the three endpoints, from which mutants are made: each field is set in one of them.

pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const COMPLETION: &str = "/v1/completions";
pub(crate) const EMBEDDING: &str = "/v1/embeddings";

pub(crate) const VALID: [(&str, &str); 15] = [
    (CHAT, r#"{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":2}"#),
    (
        CHAT,
        r#"{"model":"m","messages":[{"role":"system","content":"be brief"},{"role":"user","content":[{"type":"text","text":"a"},
        {"type":"text","text":"b"}],"name":"ann"},{"role":"assistant","content":"c"},{"role":"user","content":"d"}],
        "max_completion_tokens":2,"temperature":0.5,"top_p":0.9,"n":2,"stop":["x","yz"],"seed":7}"#,
    ),
    (
        CHAT,
        r#"{"model":"m","messages":[{"role":"developer","content":"x"}],"max_tokens":2,"stream":true,
        "stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#,
    ),
    (
        CHAT,
        r#"{"model":"m","messages":[{"role":"user","content":"y"}],"max_tokens":2,"logprobs":true,"top_logprobs":3,
        "logit_bias":{"97":5,"98":-100},"presence_penalty":1.5,"frequency_penalty":-1}"#,
    ),
    (
        CHAT,
        r#"{"model":"m","messages":[{"role":"user","content":"z"}],"max_tokens":2,"metadata":{"k":"v"},"user":"u",
        "store":false,"service_tier":"auto","tool_choice":"none","response_format":{"type":"text"},"modalities":["text"],
        "parallel_tool_calls":true,"safety_identifier":"s","prompt_cache_key":"p","prompt_cache_retention":"in_memory"}"#,
    ),
    (
        CHAT,
        r#"{"model":"m","messages":[{"role":"user","content":"w","tool_calls":null,"refusal":null,"annotations":[]}],
        "max_tokens":2,"top_k":4,"min_p":0.1,"repetition_penalty":1.1,"min_tokens":1,"ignore_eos":true,"tools":null}"#,
    ),
    (CHAT, r#"{"model":"org/other","messages":[{"role":"user","content":"hello"}],"max_tokens":1,"temperature":0}"#),
    (COMPLETION, r#"{"model":"m","prompt":"once","max_tokens":2}"#),
    (
        COMPLETION,
        r#"{"model":"m","prompt":["one","two","three"],"max_tokens":1,"n":2,"echo":true,"best_of":1,"seed":-1}"#,
    ),
    (COMPLETION, r#"{"model":"m","prompt":[104,105],"max_tokens":2,"logprobs":2,"stop":"\n","user":"u"}"#),
    (COMPLETION, r#"{"model":"m","prompt":[[104],[105,106]],"max_tokens":2,"stream":true,"temperature":2}"#),
    (COMPLETION, r#"{"model":"m","prompt":"x","max_tokens":2,"suffix":null,"logit_bias":{"0":1},"ignore_eos":false}"#),
    (EMBEDDING, r#"{"model":"m","input":"embed me"}"#),
    (EMBEDDING, r#"{"model":"m","input":["one","two"],"encoding_format":"base64","dimensions":384,"user":"u"}"#),
    (EMBEDDING, r#"{"model":"m","input":[[1,2,3],[4]],"encoding_format":"float","truncate":true}"#),
];
