"""A small random language model in a folder, with a byte tokenizer, for tests of the loop and the command line; a chat server."""

import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors, and test processes side by side: more threads only wait

import pytest
import torch


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Path of a Hugging Face folder: a Llama of two layers over bytes, context 96."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<eos>": 1, **{letter: index + 2 for index, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=96, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("toy")
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def other_toy(toy, tmp_path_factory):
    """Path of a model like `toy` with other weights, for a teacher or a reference."""
    from upslope.policies.language import LanguagePolicy

    policy, folder = LanguagePolicy.load(toy), tmp_path_factory.mktemp("other")
    for parameter in policy.parameters():
        parameter.data.mul_(1.5)
    policy.save(folder)
    return str(folder)


@pytest.fixture
def no_hub(monkeypatch):
    """The Hugging Face hub is not asked: a name that is no folder is an error at once."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def questions(tmp_path):
    """A JSONL file of 40 questions."""
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(f'{{"question": "q{i}", "answer": "{i % 7}"}}\n' for i in range(40)))
    return path


class ChatServer(ThreadingHTTPServer):
    """An OpenAI-compatible API of a judge: `reply(prompt, first, second)` gives the text of the completion, or status, body and
    headers. `asked`: path, body and headers of the requests.
    """

    daemon_threads = True
    fields = re.compile(
        r"<request>\n(.*)\n</request>.*<answer_a>\n(.*)\n</answer_a>.*<answer_b>\n(.*)\n</answer_b>", re.S
    )

    def __init__(self):
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.asked, self.reply = [], lambda prompt, first, second: "[[C]]"
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def pair(self, body):
        found = self.fields.search(body["messages"][0]["content"])
        return found.groups() if found else ("", "", "")

    def handle_error(self, request, client_address):
        """A client that did not wait for the reply is what some tests are about."""


class ChatHandler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body, dict(self.headers)))
        reply = self.server.reply(*self.server.pair(body))
        if isinstance(reply, str):
            reply = 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": reply}}]})
        status, text, *headers = reply
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def chat_server():
    with ChatServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
