"""Prompts from a language model: a real server on loopback that behaves well and badly."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from ovrs.cli.app import app
from ovrs.words import vocabulary
from ovrs.words.lint import lint
from ovrs.words.prompts import LanguageModel, PromptError, write_prompts
from ovrs.words.vocabulary import ClassEntry, Vocabulary

WORDS = Vocabulary(name="mine", classes=(ClassEntry(name="solar panel"), ClassEntry(name="meadow")))


def good(count=5, tag=""):
    return json.dumps({"synonyms": ["array"], "descriptions": [f"blue shape number {i}{tag}" for i in range(count)]})


class Server:
    """Answers with the given replies in turn, the last one for ever."""

    def __init__(self, *replies):
        self.replies, self.requests = list(replies), []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append({"path": self.path, "key": self.headers["Authorization"], **body})
                reply = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
                reply(self) if callable(reply) else self.say(reply)

            def say(self, text, refusal=None):
                message = {"role": "assistant", "content": text, "refusal": refusal}
                done = {"index": 0, "finish_reason": "stop", "message": message}
                self.send(200, {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [done]})

            def send(self, code, content, **headers):
                data = json.dumps(content).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def model(self, **more):
        return LanguageModel(base_url=self.url, name="tester", **{"timeout": 5.0, "retries": 1, **more})


def test_good_answers_complete_the_vocabulary(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    with Server(good()) as server:
        done = write_prompts(WORDS, server.model(), context="0.1 m, suburb", cache=tmp_path)
    assert done.classes[0].descriptions[0] == "blue shape number 0"
    assert done.classes[0].prompt_source == "tester"
    assert done.provenance["scene_context"] == "0.1 m, suburb"
    asked = server.requests[0]
    assert asked["path"] == "/v1/chat/completions"
    assert asked["response_format"]["type"] == "json_schema"
    assert "0.1 m, suburb" in asked["messages"][1]["content"]
    assert "solar panel, meadow" in asked["messages"][1]["content"]
    assert asked["key"] == "Bearer secret-key"
    assert "secret-key" not in vocabulary.dump(done) + "".join(f.read_text() for f in tmp_path.iterdir())
    assert vocabulary.parse(vocabulary.dump(done), "again") == done


def test_asking_again_is_answered_from_the_cache(tmp_path):
    with Server(good()) as server:
        first = write_prompts(WORDS, server.model(), cache=tmp_path)
        assert write_prompts(WORDS, server.model(), cache=tmp_path) == first
        assert len(server.requests) == 2
        assert write_prompts(first, server.model(), cache=None).classes == first.classes  # nothing left to write
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ("no json at all", "Invalid JSON"),
        (good(3), "3 descriptions instead of 5"),
        (json.dumps({"descriptions": ["a"]}), "synonyms: Field required"),
        (good().replace("number 1", "number 0"), "there twice"),
        (good().replace("array", " "), "an entry is empty"),
    ],
)
def test_bad_answers_are_asked_again_with_the_fault(bad, told):
    with Server(bad, good()) as server:
        write_prompts(WORDS, server.model())
    assert told in server.requests[1]["messages"][-1]["content"]


def test_fenced_json_is_taken():
    with Server(f"```json\n{good()}\n```") as server:
        assert len(write_prompts(WORDS, server.model()).classes[1].descriptions) == 5


def test_what_was_good_is_kept_when_a_class_fails():
    def refuse(handler):
        handler.say(None, refusal="I will not")

    with (
        Server(good(), refuse) as server,
        pytest.raises(PromptError, match="meadow: the model refused: I will not") as caught,
    ):
        write_prompts(WORDS, server.model())
    assert caught.value.partial.classes[0].descriptions
    assert not caught.value.partial.classes[1].descriptions


def test_the_server_names_a_time_to_wait():
    def later(handler):
        handler.send(429, {"error": {"message": "slow down"}}, Retry_After="1")

    start = time.monotonic()
    with Server(later, good()) as server:
        write_prompts(WORDS, server.model())
    assert len(server.requests) == 3
    assert time.monotonic() - start >= 1


def test_a_wrong_key_is_told_at_once():
    with Server(lambda h: h.send(401, {"error": {"message": "bad key"}})) as server:
        with pytest.raises(PromptError, match="answered 401"):
            write_prompts(WORDS, server.model())
        assert len(server.requests) == 2  # one per class, never repeated


def test_hanging_and_cut_connections_end():
    with Server(lambda h: time.sleep(2)) as server, pytest.raises(PromptError, match=r"did not answer within 0\.3 s"):
        write_prompts(WORDS, server.model(timeout=0.3, retries=0))

    def cut(handler):
        handler.connection.close()

    with Server(cut) as server, pytest.raises(PromptError, match="cannot be reached"):
        write_prompts(WORDS, server.model(retries=0))
    with pytest.raises(PromptError, match="cannot be reached"):
        write_prompts(WORDS, LanguageModel(base_url="http://127.0.0.1:9/v1", name="x", retries=0))


def test_without_key_and_server_it_says_what_to_do(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(PromptError, match="--llm-base-url"):
        write_prompts(WORDS, LanguageModel(base_url=None, name="x"))


def test_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("OVRS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "in.yaml").write_text(vocabulary.dump(WORDS))
    out = tmp_path / "out.yaml"
    run = CliRunner().invoke
    with Server(good(tag=" {}".format("x"))) as server:
        arguments = ["prompts", str(tmp_path / "in.yaml"), "-o", str(out), "--llm-model", "tester"]
        shown = run(app, [*arguments, "--llm-base-url", server.url])
    assert shown.exit_code == 0, shown.output
    assert len(vocabulary.load(out).classes[0].descriptions) == 5
    shown = run(app, ["prompts", str(out), "--check"])
    assert shown.exit_code == 1
    assert "is a prompt of solar panel too" in shown.output
    assert run(app, ["prompts", "demo", "--check"]).exit_code in (0, 1)
    assert "name the model" in str(run(app, ["prompts", str(out)]).exception)


def test_lint_names_every_fault():
    words = Vocabulary(
        name="w",
        classes=(
            ClassEntry(
                name="road",
                synonyms=("water way",),
                descriptions=("A " + "very " * 80 + "long strip.", "grey and noisy"),
            ),
            ClassEntry(name="water", descriptions=("dark water beside a road", "grey and noisy")),
            ClassEntry(name="tree"),
        ),
    )
    found = "\n".join(lint(words, lambda s: len(s.split()) + 2, "a photo of a {}."))
    for fault in (
        "tokens with template",
        "not visible from above (noisy)",
        "is a prompt of road too",
        "synonym 'water way' names the class water",
        "names another class (road)",
        "tree: no descriptions",
    ):
        assert fault in found
