"""What is refused, and in which words: OpenAI's error body with all four keys, and the client's exceptions."""

import openai

from server import CHAT, EMBED, FAKE, FAKE_SLOW, TENANTS, together, wait_until

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**more):
    return {"model": FAKE, "messages": MESSAGES, "max_tokens": 4} | more


def text(**more):
    return {"model": FAKE, "prompt": "hi", "max_tokens": 4} | more


def check(reply, status, kind, code=None, param=None):
    assert reply.status == status, (reply.status, reply.text)
    assert reply.headers["content-type"].startswith("application/json")
    assert reply.headers["x-request-id"]
    error = reply.json["error"]
    assert set(reply.json) == {"error"} and set(error) == {"message", "type", "param", "code"}, error
    assert error["message"] and error["type"] == kind, error
    assert code is None or error["code"] == code, error
    assert param is None or error["param"] == param or error["param"].startswith(f"{param}["), error


def refused(world, path, body, param, code=None):
    reply = world.fake.post(path, body)
    try:
        check(reply, 400, "invalid_request_error", code, param)
    except AssertionError as error:
        raise AssertionError(f"{path} {str(body)[:300]}: {error}") from None


def test_keys(world):
    for key in (None, "wrong", "weir-e2e-demo-kez", ""):
        for method, path in (("POST", "/v1/chat/completions"), ("POST", "/v1/embeddings"), ("GET", "/v1/models"),
                             ("GET", "/version"), ("GET", "/openapi.json")):
            reply = world.fake.request(method, path, {} if method == "POST" else None, key=key)
            check(reply, 401, "authentication_error", "invalid_api_key")
    basic = world.fake.request("GET", "/v1/models", key=None, headers={"Authorization": "Basic abc"})
    check(basic, 401, "authentication_error", "invalid_api_key")
    try:
        openai.OpenAI(base_url=f"http://127.0.0.1:{world.fake.port}/v1", api_key="no", max_retries=0).models.list()
        raise AssertionError("a wrong key was accepted")
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key" and error.request_id


def test_unknown_models_and_models_of_others_look_the_same(world):
    for body in (chat(model="gpt-4o"), text(model="gpt-4o"), {"model": "gpt-4o", "input": "x"}):
        path = "/v1/embeddings" if "input" in body else "/v1/completions" if "prompt" in body else "/v1/chat/completions"
        check(world.fake.post(path, body), 404, "invalid_request_error", "model_not_found", "model")
    # This tenant may use the embedding model alone: the chat model does not exist for it.
    key = TENANTS["embedder"][0]
    hidden = world.real.post("/v1/chat/completions", chat(model=CHAT), key=key)
    absent = world.real.post("/v1/chat/completions", chat(model="nothing-here"), key=key)
    check(hidden, 404, "invalid_request_error", "model_not_found", "model")
    assert hidden.text.replace(CHAT, "nothing-here") == absent.text
    assert [m.id for m in world.real.client("embedder").models.list()] == [EMBED]
    check(world.real.request("GET", f"/v1/models/{CHAT}", key=key), 404, "invalid_request_error", "model_not_found")
    try:
        world.fake.client().chat.completions.create(model="gpt-4o", messages=MESSAGES)
        raise AssertionError("an unknown model answered")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found" and error.param == "model"


def test_ranges_are_named(world):
    cases = {
        "temperature": [-0.1, 2.1, "1", True, [], 1e999],
        "top_p": [0, -1, 1.1, "x"],
        "top_k": [-2, 1.5, "x"],
        "min_p": [-0.1, 1.1, {}],
        "frequency_penalty": [-2.1, 2.1, "x"],
        "presence_penalty": [-2.1, 2.1, []],
        "repetition_penalty": [0, -1, 2.5],
        "n": [0, -1, 9, 1.5, 10**30, "2"],
        "max_tokens": [0, -1, 1.5, 10**12, "x"],
        "max_completion_tokens": [0, -1, "x"],
        "min_tokens": [-1, 5, "x"],  # 5 is more than max_tokens
        "seed": ["x", 1.5, 2**64],
        "stop": ["", [""], ["a", "b", "c", "d", "e"], ["x" * 257], 1, [1]],
        "ignore_eos": [1, "true"],
        "stream": ["yes", 1],
        "stream_options": [{"include_usage": True}, []],  # without stream
        "user": [1, {}],
    }
    for param, values in cases.items():
        for value in values:
            if value == 1e999:
                continue  # not JSON: below
            refused(world, "/v1/chat/completions", chat() | {param: value}, param)
            refused(world, "/v1/completions", text() | {param: value}, param)
    refused(world, "/v1/chat/completions", chat(logit_bias={"x": 1}), "logit_bias")
    for bias in ({"1": 101}, {"1": "x"}, [], {"-1": 1}):
        reply = world.fake.post("/v1/chat/completions", chat(logit_bias=bias))
        check(reply, 400, "invalid_request_error")
        assert reply.json["error"]["param"].startswith("logit_bias"), reply.text
    for value in (-1, 21, "x"):
        refused(world, "/v1/chat/completions", chat(logprobs=True, top_logprobs=value), "top_logprobs")
        refused(world, "/v1/completions", text(logprobs=value), "logprobs")
    refused(world, "/v1/chat/completions", chat(top_logprobs=2), "top_logprobs")
    refused(world, "/v1/chat/completions", chat(logprobs=1), "logprobs")
    refused(world, "/v1/completions", text(echo="yes"), "echo")


def test_null_is_absent(world):
    body = chat(**{name: None for name in (
        "temperature", "top_p", "n", "stop", "seed", "logit_bias", "logprobs", "top_logprobs", "stream", "stream_options",
        "user", "tools", "response_format", "top_k", "min_p", "ignore_eos", "min_tokens", "max_completion_tokens")})
    assert world.fake.post("/v1/chat/completions", body).status == 200


def test_unsupported_fields_are_refused_by_name(world):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for param, value in {
        "tools": [tool], "tool_choice": "auto", "functions": [tool["function"]], "function_call": "auto",
        "response_format": {"type": "json_object"}, "audio": {"voice": "alloy", "format": "wav"},
        "modalities": ["text", "audio"], "prediction": {"type": "content", "content": "x"}, "reasoning_effort": "low",
        "web_search_options": {}, "store": True, "service_tier": "flex",
    }.items():
        refused(world, "/v1/chat/completions", chat(**{param: value}), param, "unsupported_parameter")
    refused(world, "/v1/completions", text(suffix="x"), "suffix", "unsupported_parameter")
    refused(world, "/v1/completions", text(best_of=2), "best_of", "unsupported_parameter")
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}]
    refused(world, "/v1/chat/completions", chat(messages=image), "messages[0].content[0].type", "unsupported_parameter")
    try:
        world.fake.client().chat.completions.create(model=FAKE, messages=MESSAGES, tools=[tool])
        raise AssertionError("tools were ignored")
    except openai.BadRequestError as error:
        assert error.param == "tools" and error.code == "unsupported_parameter" and error.type == "invalid_request_error"


def test_unknown_fields_are_refused_by_name(world):
    refused(world, "/v1/chat/completions", chat(temprature=1), "temprature", "unknown_parameter")
    refused(world, "/v1/completions", text(best_off=1), "best_off", "unknown_parameter")
    refused(world, "/v1/embeddings", {"model": FAKE, "input": "x", "pooling": "cls"}, "pooling", "unknown_parameter")
    refused(world, "/v1/chat/completions", chat(stream=True, stream_options={"usage": True}), "stream_options.usage")
    refused(world, "/v1/chat/completions", chat(messages=[{"role": "user", "content": "x", "weight": 1}]),
            "messages[0].weight", "unknown_parameter")


def test_messages_and_prompts_are_checked(world):
    for messages, param in ((None, "messages"), ([], "messages"), ("hi", "messages"), ([{}], "messages[0].role"),
                            ([{"role": "robot", "content": "x"}], "messages[0].role"),
                            ([{"role": "user"}], "messages[0].content"),
                            ([{"role": "user", "content": 5}], "messages[0].content"),
                            ([*MESSAGES, {"role": "tool", "content": "x", "tool_call_id": "1"}], "messages[1].role")):
        refused(world, "/v1/chat/completions", chat(messages=messages), param)
    for prompt in (None, [], 5, {}, [[]], [1, "a"], [-1], [1.5]):
        reply = world.fake.post("/v1/completions", text(prompt=prompt))
        check(reply, 400, "invalid_request_error")
        assert reply.json["error"]["param"].startswith("prompt"), (prompt, reply.text)
    refused(world, "/v1/chat/completions", {"messages": MESSAGES}, "model")
    refused(world, "/v1/chat/completions", chat(max_tokens=3, max_completion_tokens=4), "max_tokens")


def test_bodies_that_are_not_json(world):
    for body in (b"", b"{", b"[]", b"null", b'{"a":1}x', b'{"n":NaN}', b"\xff\xfe", b'{"model":"fake","model":"fake"}',
                 b'{"a":' * 100 + b"1" + b"}" * 100):
        check(world.fake.post("/v1/chat/completions", body), 400, "invalid_request_error")
    gzip = world.fake.request("POST", "/v1/chat/completions", b"{}", headers={"Content-Encoding": "gzip"})
    check(gzip, 415, "invalid_request_error")


def test_a_body_over_the_cap(world):
    messages = [{"role": "user", "content": "x" * (5 << 20)}]
    try:
        world.fake.client().chat.completions.create(model=FAKE, messages=messages)
        raise AssertionError("a body of 5 MiB was accepted")
    except openai.APIStatusError as error:
        assert error.status_code == 413 and error.type == "invalid_request_error", error
    # The length that a client announces is enough to say no: it need not send the body first.
    check(world.fake.request("POST", "/v1/chat/completions", b"", headers={"Content-Length": str(5 << 20)}), 413,
          "invalid_request_error")
    assert world.fake.post("/v1/chat/completions", chat()).status == 200


def test_more_than_the_context(world):
    long = {"model": CHAT, "prompt": [1] * 8192, "max_tokens": 1}
    check(world.real.post("/v1/completions", long), 400, "invalid_request_error", "context_length_exceeded")
    greedy = {"model": CHAT, "messages": MESSAGES, "max_tokens": 8192}
    check(world.real.post("/v1/chat/completions", greedy), 400, "invalid_request_error", "context_length_exceeded")


def test_routes_and_methods(world):
    check(world.fake.request("GET", "/v1/nothing"), 404, "invalid_request_error")
    check(world.fake.request("GET", "/v1/chat/completions"), 405, "invalid_request_error")
    check(world.fake.request("DELETE", "/v1/models"), 405, "invalid_request_error")


def test_request_ids(world):
    named = world.fake.request("GET", "/v1/models", headers={"x-request-id": "from-the-client_1"})
    assert named.headers["x-request-id"] == "from-the-client_1"
    one, two = (world.fake.request("GET", "/v1/models").headers["x-request-id"] for _ in range(2))
    assert one and two and one != two
    for bad in ("x" * 129, "a b"):
        sent = world.fake.request("GET", "/v1/models", headers={"x-request-id": bad})
        assert sent.headers["x-request-id"] not in (None, bad), bad
    stream = world.fake.post("/v1/chat/completions", chat(stream=True), headers={"x-request-id": "s1"})
    assert stream.headers["x-request-id"] == "s1"


def test_a_full_queue_of_one_tenant(world):
    """One running, one waiting: the third is told when to come back, and other tenants do not notice."""
    body = {"model": FAKE_SLOW, "prompt": "x", "max_tokens": 400, "ignore_eos": True}
    key = TENANTS["small"][0]
    held = [world.fake.open_stream("/v1/completions", body, key)]
    try:
        held[0][1].readline()  # it runs: from here on the next one waits
        refused_at = []

        def try_one(_):
            # A waiting request has no status line yet; it is left waiting by a short timeout of its own.
            import http.client
            import json as codec

            connection = http.client.HTTPConnection("127.0.0.1", world.fake.port, timeout=3)
            held.append((connection, None))
            connection.request("POST", "/v1/completions", codec.dumps(body | {"max_tokens": 1}).encode(),
                               {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
            try:
                response = connection.getresponse()
            except TimeoutError:
                return
            if response.status == 429:
                refused_at.append((response.headers["retry-after"], codec.loads(response.read())["error"]))

        together(try_one, range(4))
        assert len(refused_at) >= 2, refused_at
        for retry_after, error in refused_at:
            assert int(retry_after) >= 1
            assert error["type"] == "rate_limit_error" and error["code"] == "rate_limit_exceeded", error
        assert world.fake.post("/v1/completions", text()).status == 200
    finally:
        for connection, _ in held:
            connection.close()
    # The tenant is served again once its requests are gone.
    wait_until("room", lambda: world.fake.post("/v1/completions", text(), key=key).status == 200)
