"""The dsv2 command as a user meets it: output, exit status, pipes, terminals and Ctrl-C.

Usage: test_tool.py DSV2 GOLDENS [unittest's own arguments]
"""

import array
import csv
import json
import math
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import tiny_model

DSV2, GOLDENS = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
COMMANDS = ["generate", "chat", "tokenize", "detokenize", "logits", "perplexity", "experts", "inspect", "bench", "pack"]
TIMEOUT = 600  # seconds, for a machine that is busy or a build with sanitizers; nothing here measures time


class Result:
    def __init__(self, process):
        self.status, self.out, self.err = process.returncode, process.stdout, process.stderr.decode("utf-8", "replace")


def dsv2(*arguments, text=b""):
    return Result(subprocess.run([DSV2, *map(str, arguments)], input=text, capture_output=True, timeout=TIMEOUT, check=False))


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, *arguments):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(DSV2, [DSV2, *map(str, arguments)])
        self.seen = b""

    def read_until(self, wanted, start=0):
        """Waits until `wanted` appears at or after `start`; returns where it ends."""
        deadline = time.monotonic() + TIMEOUT
        while wanted not in self.seen[start:]:
            if not self._read(deadline):
                raise AssertionError(f"{wanted!r} did not come; seen: {self.seen!r}")
        return self.seen.index(wanted, start) + len(wanted)

    def read_bytes(self, count):
        deadline = time.monotonic() + TIMEOUT
        while len(self.seen) < count:
            if not self._read(deadline):
                raise AssertionError(f"ended after {self.seen!r}")

    def _read(self, deadline):
        ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # the other side is closed
            return False
        self.seen += data
        return bool(data)

    def write(self, data):
        os.write(self.fd, data)

    def wait(self):
        deadline = time.monotonic() + TIMEOUT
        while self._read(deadline):
            pass
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        return status


class ToolTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.model = tiny_model.make(os.path.join(GOLDENS, "lite"), cls.path("lite"))

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    @classmethod
    def path(cls, name):
        return os.path.join(cls.folder.name, name)

    def write(self, name, data):
        with open(self.path(name), "wb") as file:
            file.write(data)
        return self.path(name)

    def run_well(self, *arguments, text=b""):
        result = dsv2(*arguments, text=text)
        self.assertEqual((result.status, result.err), (0, ""), arguments)
        return result.out

    def logits(self, model, ids, *arguments):
        """Rows of logits after each id."""
        ids_file, output = self.write("ids.txt", " ".join(map(str, ids)).encode()), self.path("logits.f32")
        self.assertEqual(self.run_well("logits", model, "--tokens-file", ids_file, "--output", output, *arguments), b"")
        values = array.array("f")
        with open(output, "rb") as file:
            values.frombytes(file.read())
        width = len(values) // len(ids)
        self.assertEqual(len(values), width * len(ids))
        return [values[i * width : (i + 1) * width] for i in range(len(ids))]


class CommandLine(ToolTest):
    def test_help_goes_to_stdout_with_status_0(self):
        self.assertIn(b"Usage: dsv2 COMMAND", self.run_well("--help"))
        self.assertRegex(self.run_well("--version").decode(), r"^dsv2 \d+\.\d+\.\d+\n$")
        for command in COMMANDS:
            with self.subTest(command):
                self.assertIn(f"Usage: dsv2 {command} ".encode(), self.run_well(command, "--help"))

    def test_wrong_command_lines_are_answered_with_status_2_and_a_reason(self):
        cases = [
            ([], "Usage: dsv2 COMMAND"),
            (["frobnicate"], "'frobnicate'"),
            *[([command], f"dsv2 {command} ") for command in COMMANDS],
            (["generate", self.model], "--prompt"),
            (["generate", self.model, "--prompt", "a", "--frobnicate"], "frobnicate"),
            (["generate", self.model, "extra", "--prompt", "a"], "expected"),
            (["generate", self.model, "--prompt", "a", "--max-tokens", "x"], "'x'"),
            (["generate", self.model, "--prompt", "a", "--max-tokens", "-1"], "'-1'"),
            (["generate", self.model, "--prompt", "a", "--seed", "99999999999999999999"], "99999999999999999999"),
            (["generate", self.model, "--prompt", "a", "--threads", "1025"], "1025"),
            (["generate", self.model, "--prompt", "a", "--temperature", "hot"], "'hot'"),
            (["generate", self.model, "--prompt", "a", "--temperature", "-1"], "temperature is -1"),
            (["generate", self.model, "--prompt", "a", "--top-p", "0"], "top_p is 0"),
            (["logits", self.model, "--output", "x"], "--tokens-file"),
            (["logits", self.model, "--tokens-file", "x"], "--output"),
            (["logits", self.model, "--tokens-file", "x", "--output", "x", "--attention", "none"], "'none'"),
            (["logits", self.model, "--tokens-file", "x", "--output", "x", "--chunk", "0"], "too small"),
            (["perplexity", self.model], "expected"),
            (["bench", self.model, "--sessions", "0"], "too small"),
            (["bench", self.model, "--sessions", "2", "--keep", "x"], "one session"),
        ]
        for arguments, reason in cases:
            with self.subTest(arguments):
                result = dsv2(*arguments)
                self.assertEqual(result.status, 2)
                self.assertEqual(result.out, b"")
                self.assertIn(reason, result.err)

    def test_failures_are_answered_with_status_1_and_name_what_failed(self):
        missing, out = self.path("missing"), self.path("out")
        ids, bad_ids, far_ids = self.write("a", b"1 2"), self.write("b", b"1 two"), self.write("c", b"5 384")
        cases = [
            (["generate", missing, "--prompt", "a"], missing),
            (["inspect", missing], missing),
            (["generate", self.model, "--prompt", "a", "--kernels", "abacus"], "abacus"),
            (["generate", os.path.join(GOLDENS, "lite"), "--prompt", "a"], "tokenizer"),
            (["generate", self.model, "--prompt", "z" * 3000], "2560"),
            (["logits", self.model, "--tokens-file", missing, "--output", out], missing),
            (["logits", self.model, "--tokens-file", bad_ids, "--output", out], "'two'"),
            (["logits", self.model, "--tokens-file", far_ids, "--output", out], "384"),
            (["logits", self.model, "--tokens-file", ids, "--output", os.path.join(missing, "x")], missing),
            (["logits", self.model, "--tokens-file", ids, "--output", "/dev/full"], "/dev/full"),
            (["perplexity", self.model, missing], missing),
            (["perplexity", self.model, self.write("empty", b"")], "no token"),
            (["bench", self.model, "--depth", "2560", "--prompt", "1"], "2560"),
            (["tokenize", missing], missing),
        ]
        for arguments, reason in cases:
            with self.subTest(arguments[:1] + arguments[2:]):
                result = dsv2(*arguments)
                self.assertEqual((result.status, result.out), (1, b""))
                self.assertIn(reason, result.err)
                self.assertFalse(os.path.exists(out))

    def test_output_that_cannot_be_written_is_a_failure(self):
        for arguments in (["inspect", self.model], ["generate", self.model, "--prompt", "a", "--max-tokens", "3"], ["--help"]):
            with self.subTest(arguments), open("/dev/full", "wb") as full:
                run = subprocess.run([DSV2, *arguments], stdout=full, stderr=subprocess.PIPE, timeout=TIMEOUT, check=False)
                self.assertEqual(run.returncode, 1)
                self.assertIn(b"No space left", run.stderr)


class Tokens(ToolTest):
    def test_any_bytes_come_back(self):
        for text in (b"", b"Hello, world\n", bytes(range(256)) * 3, "ünï\u2581\U0001f600".encode(), b"\xff\xfe\xf0\x9f"):
            with self.subTest(text):
                ids = self.run_well("tokenize", self.model, text=text)
                self.assertEqual(ids.count(b"\n"), 1)
                self.assertEqual(self.run_well("detokenize", self.model, text=ids), text)

    def test_special_tokens_come_only_where_asked_for(self):
        bos = "<\uff5cbegin\u2581of\u2581sentence\uff5c>".encode()
        plain = self.run_well("tokenize", self.model, text=bos).split()
        self.assertNotIn(b"0", plain)
        self.assertEqual(self.run_well("tokenize", self.model, "--special", text=bos), b"0\n")
        self.assertEqual(self.run_well("tokenize", self.model, "--bos", text=b"a").split()[0], b"0")
        self.assertEqual(self.run_well("detokenize", self.model, text=b"0 99"), b"a")
        self.assertEqual(self.run_well("detokenize", self.model, "--special", text=b"0 99"), bos + b"a")

    def test_a_tokenizer_needs_no_weights(self):
        path = os.path.join(self.model, "tokenizer.json")
        self.assertEqual(self.run_well("tokenize", path, text=b"a\n"), b"99 12\n")

    def test_ids_that_are_none_are_refused(self):
        cases = (
            (b"1 x", "'x'"),
            (b"1 1048576", "1048576"),
            (b"-1", "-1"),
            (b"99999999999", "99999999999"),
            (b"1\x002", "token"),
        )
        for ids, reason in cases:
            with self.subTest(ids):
                result = dsv2("detokenize", self.model, text=ids)
                self.assertEqual(result.status, 1)
                self.assertIn(reason, result.err)

    def test_an_id_behind_the_vocabulary_has_no_text(self):
        some = dsv2("detokenize", self.model, text=b"40 50")
        self.assertEqual(dsv2("detokenize", self.model, text=b"40 384 50 1048575").out, some.out)


class Logits(ToolTest):
    def test_logits_match_the_reference_for_any_chunking_threads_and_attention(self):
        for golden in ("lite", "full", "plain", "v3"):
            folder = os.path.join(GOLDENS, golden)
            expected_file = os.path.join(folder, "expected.safetensors")
            ids, _ = tiny_model.read_tensor(expected_file, "input_ids")
            expected, (rows, width) = tiny_model.read_tensor(expected_file, "logits")
            for settings in (
                ["--chunk", 1],
                ["--chunk", 7, "--threads", 1],
                ["--chunk", 100000, "--threads", 2],
                ["--attention", "absorbed"],
                ["--attention", "expanded"],
                ["--kernels", "c"],
            ):
                with self.subTest(golden=golden, settings=settings):
                    got = self.logits(folder, ids, *settings)
                    self.assertEqual((len(got), len(got[0])), (rows, width))
                    worst = max(abs(a - b) for i, row in enumerate(got) for a, b in zip(row, expected[i * width :]))
                    self.assertLessEqual(worst, 1e-3)

    def test_logits_are_the_same_bits_for_one_thread_and_two(self):
        ids = [0] + [i * 37 % 382 + 2 for i in range(50)]
        self.assertEqual(self.logits(self.model, ids, "--threads", 1), self.logits(self.model, ids, "--threads", 2))


class Generation(ToolTest):
    def test_the_same_seed_gives_the_same_text_and_another_another(self):
        command = ["generate", self.model, "--prompt", "Once", "--max-tokens", 30, "--temperature", 1.5]
        first = self.run_well(*command)
        self.assertGreater(len(first), 10)
        self.assertEqual(self.run_well(*command, "--threads", 1), first)
        self.assertNotEqual(self.run_well(*command, "--seed", 1), first)

    def test_greedy_text_is_the_most_likely_token_again_and_again(self):
        ids = [int(i) for i in self.run_well("tokenize", self.model, "--bos", text=b"Once upon").split()]
        n = len(ids)
        for _ in range(12):
            last = self.logits(self.model, ids)[-1]
            ids.append(last.index(max(last)))
        expected = self.run_well("detokenize", self.model, text=" ".join(map(str, ids[n:])).encode())
        command = ["generate", self.model, "--prompt", "Once upon", "--max-tokens", 12, "--temperature", 0,
                   "--kv", "f32"]  # as `logits` keeps them
        self.assertEqual(self.run_well(*command), expected)

    def test_the_end_token_and_the_full_context_end_the_text(self):
        def first_token(*arguments):
            ids = [int(i) for i in self.run_well("tokenize", self.model, "--bos", text=b"Once").split()]
            last = self.logits(self.model, ids, *arguments)[-1]
            return last.index(max(last))

        def make_end(config):
            config["eos_token_id"] = end

        def make_short(config):
            config["max_position_embeddings"] = 12

        end = first_token()
        ends = tiny_model.make(os.path.join(GOLDENS, "lite"), self.path("ends"), make_end)
        self.assertEqual(self.run_well("generate", ends, "--prompt", "Once", "--temperature", 0), b"")
        long, short = (tiny_model.make(os.path.join(GOLDENS, "plain"), self.path(name), change)
                       for name, change in (("long", None), ("short", make_short)))
        command = ["--prompt", "Once", "--temperature", 0, "--max-tokens"]
        room = 12 - len(self.run_well("tokenize", short, "--bos", text=b"Once").split())
        # The last token needs no place: the model is not asked for more after it.
        self.assertEqual(self.run_well("generate", short, *command, 1000), self.run_well("generate", long, *command, room + 1))


class Chat(ToolTest):
    GREEDY = ["--temperature", "0", "--max-tokens", "12"]
    SLOW = ["--temperature", "0", "--kernels", "c", "--threads", "1"]

    def chat(self, lines, *arguments):
        out = self.run_well("chat", self.model, *(arguments or self.GREEDY), text=b"".join(line + b"\n" for line in lines))
        return out

    def test_a_pipe_gets_replies_alone(self):
        out = self.chat([b"Hello"])
        ids = self.run_well("tokenize", self.model, "--bos", text=b"User: Hello\n\nAssistant:")
        prompt = [int(i) for i in ids.split()]
        n = len(prompt)
        for _ in range(12):
            last = self.logits(self.model, prompt)[-1]
            prompt.append(last.index(max(last)))
        reply = self.run_well("detokenize", self.model, text=" ".join(map(str, prompt[n:])).encode())
        self.assertEqual(out, reply + b"\n")

    def test_the_conversation_is_kept_until_reset(self):
        once = self.chat([b"Hello"])
        self.assertEqual(self.chat([b"Hello", b"/reset", b"Hello"]), once + once)
        twice = self.chat([b"Hello", b"Hello"])
        self.assertTrue(twice.startswith(once))
        self.assertNotEqual(twice, once + once)
        self.assertEqual(self.chat([b"Hello", b"/exit", b"Hello"]), once)

    def test_a_system_text_changes_the_reply(self):
        self.assertNotEqual(self.chat([b"Hello"], *self.GREEDY, "--system", "Be brief"), self.chat([b"Hello"]))

    @staticmethod
    def reply(shown):
        """`shown` without the terminal's echo and the progress bar that a slow machine shows while reading the message."""
        return shown.rpartition(b"\x1b[K")[2].replace(b"^C", b"")

    def interrupted(self, talk, message, end, least):
        """The reply to a message, which Ctrl-C stops after `least` bytes, and where the next prompt ends."""
        talk.write(message + b"\n")
        start = talk.read_until(message + b"\r\n", end)
        talk.read_bytes(start + least)
        while len(self.reply(talk.seen[start:])) < least or (talk.seen[start:].startswith(b"\r") and b"\x1b[K" not in talk.seen[start:]):
            talk.read_bytes(len(talk.seen) + 1)
        talk.write(b"\x03")
        end = talk.read_until(b"\r\n> ", start)
        return self.reply(talk.seen[start : end - 4]), end

    def test_ctrl_c_stops_a_reply_and_what_was_said_stays(self):
        talk = Terminal("chat", self.model, *self.SLOW)
        said, end = self.interrupted(talk, b"Hello", talk.read_until(b"> "), 20)
        continued, _ = self.interrupted(talk, b"Go on", end, 40)
        talk.write(b"/exit\n")
        self.assertEqual(talk.wait(), 0)

        # The same conversation; --max-tokens cuts the first reply at the same place, since every token adds text.
        low, high = 1, len(said)
        while low < high:
            middle = (low + high) // 2
            whole = self.on_terminal(["--max-tokens", str(middle)], [b"Hello"])[0]
            low, high = (low, middle) if len(whole) >= len(said) else (middle + 1, high)
        again = self.on_terminal(["--max-tokens", str(low)], [b"Hello", b"Go on"])
        self.assertEqual(again[0], said)
        shorter = min(len(again[1]), len(continued))
        self.assertGreater(shorter, 0)
        self.assertEqual(again[1][:shorter], continued[:shorter])

    def on_terminal(self, arguments, messages):
        """The replies as a terminal shows them."""
        talk = Terminal("chat", self.model, *self.SLOW, *arguments)
        end = talk.read_until(b"> ")
        shown = []
        for message in messages:
            talk.write(message + b"\n")
            start = talk.read_until(message + b"\r\n", end)
            end = talk.read_until(b"\r\n> ", start)
            shown.append(self.reply(talk.seen[start : end - 4]))
        talk.write(b"\x04")
        self.assertEqual(talk.wait(), 0)
        return shown

    def test_ctrl_c_at_the_prompt_throws_the_line_away_and_ctrl_d_ends(self):
        talk = Terminal("chat", self.model, *self.GREEDY)
        end = talk.read_until(b"> ")
        talk.write(b"half a li\x03")
        end = talk.read_until(b"> ", talk.read_until(b"ends the conversation", end))
        talk.write(b"\x04")
        self.assertEqual(talk.wait(), 0)


class Storage(ToolTest):
    def test_a_saved_text_goes_on_where_it_stopped(self):
        command = ["generate", self.model, "--temperature", 1.2, "--seed", 7]
        for kv in ("f32", "f16", "q8", "q6"):
            with self.subTest(kv):
                file = self.path(kv)
                whole = self.run_well(*command, "--prompt", "Once", "--max-tokens", 30, "--kv", kv)
                first = self.run_well(*command, "--prompt", "Once", "--max-tokens", 13, "--kv", kv, "--save", file)
                facts = json.loads(self.run_well("inspect", file, "--json"))
                n = 13 + len(self.run_well("tokenize", self.model, "--bos", text=b"Once").split())
                self.assertEqual((facts["container"], facts["kv"], facts["tokens"]), ("snapshot", kv, n))
                self.assertEqual(facts["file_bytes"], os.path.getsize(file))
                # The file has the sampling and the cache type: no option repeats them.
                rest = self.run_well("generate", self.model, "--restore", file, "--max-tokens", 17)
                self.assertEqual(first + rest, whole)
                self.assertEqual(self.run_well("generate", self.model, "--restore", file, "--prompt", "", "--max-tokens", 17), rest)
                self.assertNotEqual(self.run_well("generate", self.model, "--restore", file, "--max-tokens", 17, "--seed", 8), rest)

    def test_a_prompt_is_added_to_a_restored_text(self):
        file, command = self.path("added"), ["generate", self.model, "--temperature", 0, "--max-tokens"]
        together = self.run_well(*command, 9, "--prompt", "On!", "--kv", "f32")
        self.run_well(*command, 0, "--prompt", "On", "--save", file, "--kv", "f32")
        self.assertEqual(self.run_well(*command, 9, "--restore", file, "--prompt", "!"), together)

    def test_a_chat_resumes(self):
        file, command = self.path("chat"), ["chat", self.model, "--temperature", "1", "--max-tokens", "8"]
        together = self.run_well(*command, text=b"Hello\nGo on\nAnd then?\n")
        parts = self.run_well(*command, "--save", file, text=b"Hello\n")
        for line in (b"Go on\n", b"And then?\n"):
            parts += self.run_well("chat", self.model, "--max-tokens", 8, "--restore", file, "--save", file, text=line)
        self.assertEqual(parts, together)

    def test_files_that_cannot_be_used_are_refused_and_kept(self):
        file, other = self.path("snapshot"), tiny_model.make(os.path.join(GOLDENS, "plain"), self.path("other"))
        self.run_well("generate", self.model, "--prompt", "Once", "--max-tokens", 5, "--save", file)
        with open(file, "rb") as saved:
            data = saved.read()
        damaged = self.write("damaged", data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
        for arguments, reason in (
            ([self.model, "--restore", damaged], damaged),
            ([self.model, "--restore", self.write("cut", data[:-9])], "cut"),
            ([self.model, "--restore", self.path("missing")], self.path("missing")),
            ([other, "--restore", file], "model"),
            ([self.model, "--prompt", "a", "--save", os.path.join(self.path("missing"), "x")], self.path("missing")),
        ):
            with self.subTest(reason):
                result = dsv2("generate", *arguments, "--max-tokens", 1)
                self.assertEqual(result.status, 1)
                self.assertIn(reason, result.err)
        self.assertEqual(dsv2("generate", self.model, "--prompt", "a", "--kv", "q9").status, 2)
        with open(file, "rb") as saved:
            self.assertEqual(saved.read(), data)


class Examples(ToolTest):
    """The programs in examples/ do what `dsv2` does, in fewer lines. They draw with the library's defaults."""

    DEFAULTS = ["--temperature", 1, "--top-p", 1]

    def example(self, name, *arguments):
        program = os.path.join(os.path.dirname(DSV2), name)
        run = subprocess.run([program, *arguments], capture_output=True, timeout=TIMEOUT, check=False)
        self.assertEqual((run.returncode, run.stderr), (0, b""))
        return run.stdout

    def generated(self, prompt, n):
        return self.run_well("generate", self.model, "--prompt", prompt, "--max-tokens", n, *self.DEFAULTS)

    def test_hello_continues_a_text(self):
        self.assertEqual(self.example("hello", self.model, "Once"), self.generated("Once", 50) + b"\n")

    def test_many_sessions_continues_each_text_as_if_alone(self):
        prompts = ["Once", "The king", "In winter"]
        expected = b"".join(prompt.encode() + self.generated(prompt, 40) + b"\n\n" for prompt in prompts)
        self.assertEqual(self.example("many_sessions", self.model, *prompts), expected)

    def test_questions_leave_the_document_as_it_is(self):
        document, read = "The cat sat on the mat. " * 10, self.path("read")
        answers = self.example("questions", self.model, self.write("document", document.encode()), "Who?", "Where?", "Who?")
        self.run_well("generate", self.model, "--prompt", document, "--max-tokens", 0, "--save", read)
        command = ["generate", self.model, "--restore", read, "--max-tokens", 60, *self.DEFAULTS, "--prompt"]
        who, where = (q.encode() + self.run_well(*command, q) + b"\n\n" for q in ("Who?", "Where?"))
        self.assertEqual(answers, who + where + who)

    def test_resume_is_a_chat_in_several_runs(self):
        file, lines = self.path("resume"), (b"Hello", b"Go on")
        command = ["chat", self.model, *self.DEFAULTS, "--max-tokens", 100]
        runs = b"".join(self.example("resume", self.model, file, line.decode()) for line in lines)
        self.assertEqual(runs, self.run_well(*command, text=b"\n".join(lines)))


class Perplexity(ToolTest):
    TEXT = ("The cat sat on the mat; the dog, which had been there before, did not. \u00bd\n" * 6).encode()

    def surprise(self, ids, context, bos):
        """The same measure computed from `dsv2 logits`: nats and the number of tokens predicted."""
        nats, count = 0.0, 0
        for begin in range(0, len(ids), context):
            window = ([bos] if bos is not None else []) + ids[begin : begin + context]
            if len(window) < 2:
                continue
            for row, token in zip(self.logits(self.model, window), window[1:]):
                top = max(row)
                nats += top + math.log(sum(math.exp(x - top) for x in row)) - row[token]
                count += 1
        return nats, count

    def test_perplexity_is_that_of_the_logits(self):
        def no_bos(config):
            config["bos_token_id"] = None

        text = self.write("text", self.TEXT)
        ids = [int(i) for i in self.run_well("tokenize", self.model, text=self.TEXT).split()]
        for context in (50, 64, len(ids)):
            with self.subTest(context):
                got = json.loads(self.run_well("perplexity", self.model, text, "--context", context, "--json"))
                nats, count = self.surprise(ids, context, 0)
                self.assertEqual((got["tokens"], got["bytes"], got["context"]), (len(ids), len(self.TEXT), context))
                self.assertEqual((count, got["windows"]), (len(ids), -(-len(ids) // context)))
                # The command's cache may round; the reference's does not.
                self.assertAlmostEqual(got["nats_per_token"], nats / count, delta=2e-3)
                self.assertAlmostEqual(got["perplexity"], math.exp(got["nats_per_token"]), delta=1e-6 * got["perplexity"])
                bits = got["nats_per_token"] * got["tokens"] / math.log(2) / got["bytes"]
                self.assertAlmostEqual(got["bits_per_byte"], bits, places=6)

    def test_the_context_is_lowered_to_what_the_model_holds(self):
        text = self.write("text", self.TEXT * 10)
        got = json.loads(self.run_well("perplexity", self.model, text, "--context", 100000, "--json"))
        self.assertEqual(got["context"], 2560)

    def test_the_words_say_what_the_json_says(self):
        text = self.write("text", self.TEXT)
        got = json.loads(self.run_well("perplexity", self.model, text, "--json"))
        words = self.run_well("perplexity", self.model, text).decode()
        self.assertIn(f"perplexity per token  {got['perplexity']:.4f}\n", words)
        self.assertIn(f"bits per byte         {got['bits_per_byte']:.6f}\n", words)


class Experts(ToolTest):
    TEXT = ("Once upon a time there was a mouse, and the mouse had a house.\n" * 12).encode()

    def report(self, model, *arguments):
        """What the command prints, and the three files it writes."""
        text = self.write("text", self.TEXT)
        names = {kind: self.path("report." + kind) for kind in ("json", "csv", "svg")}
        files = [word for kind, name in names.items() for word in ("--" + kind, name)]
        words = self.run_well("experts", model, text, *files, *arguments).decode()
        with open(names["json"], encoding="utf-8") as file:
            found = json.load(file)
        with open(names["csv"], encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return words, found, rows, xml.etree.ElementTree.parse(names["svg"]).getroot()

    def test_the_reports_agree_with_each_other_and_with_the_router(self):
        full = tiny_model.make(os.path.join(GOLDENS, "full"), self.path("full"))
        n_tokens = len(self.run_well("tokenize", full, text=self.TEXT).split())
        for context in (50, 512):
            words, found, rows, picture = self.report(full, "--context", context)
            self.assertEqual((found["tokens"], found["windows"]), (n_tokens, -(-n_tokens // context)))
            self.assertEqual((found["n_devices"], found["max_devices"]), (4, 2))
            self.assertEqual([layer["layer"] for layer in found["layers"]], [1, 2])
            pairs = n_tokens * found["num_experts_per_tok"]
            for layer in found["layers"]:
                chosen = [expert["chosen"] for expert in layer["experts"]]
                self.assertEqual((len(chosen), sum(chosen)), (16, pairs))
                self.assertAlmostEqual(layer["max_over_mean"], max(chosen) * 16 / pairs)
                self.assertEqual(layer["never_used"], chosen.count(0))
                self.assertAlmostEqual(sum(expert["affinity_sum"] for expert in layer["experts"]), n_tokens, places=2)
                self.assertLessEqual(layer["max_devices_reached"], 2)
                self.assertRegex(words, rf"(?m)^ *{layer['layer']} +{layer['max_over_mean']:.3f} ")
            self.assertEqual(
                [(int(row["layer"]), int(row["expert"]), int(row["chosen"])) for row in rows],
                [(layer["layer"], i, expert["chosen"]) for layer in found["layers"] for i, expert in enumerate(layer["experts"])],
            )
            self.assertIn("a token reached at most 2 (the limit: 2)", words)
            cells = [t.text for t in picture.iter("{http://www.w3.org/2000/svg}title") if t.text.startswith("layer ")]
            self.assertEqual(cells, [f"layer {row['layer']}, expert {row['expert']}: {float(row['load']):.2f}x" for row in rows])
            busiest = max(rows, key=lambda row: int(row["chosen"]))
            self.assertRegex(words, rf"(?m)^ *{busiest['layer']} +{busiest['expert']} +{busiest['chosen']} .*\|")
            self.assertNotIn("\033", words)

    def test_other_devices_than_the_models_own_can_be_asked_for(self):
        _, found, _, _ = self.report(self.model, "--devices", 4, "--max-devices", 2)
        self.assertEqual((found["n_devices"], found["max_devices"], found["n_group"]), (4, 2, 1))
        for layer in found["layers"]:
            self.assertLessEqual(layer["mean_devices_reached"], layer["max_devices_reached"])
            self.assertGreater(layer["mean_devices_reached"], 1)

    def test_a_terminal_gets_colours(self):
        terminal = Terminal("experts", self.model, self.write("text", self.TEXT))
        self.assertEqual(terminal.wait(), 0)
        self.assertIn(b"\033[48;5;", terminal.seen)

    def test_what_cannot_be_done_is_told(self):
        def make_dense(config):
            config["n_routed_experts"] = None

        # A dense configuration asks for tensors that this checkpoint lacks in every layer but the first.
        dense = tiny_model.make(os.path.join(GOLDENS, "lite"), self.path("dense"), lambda c: (make_dense(c), c.update(num_hidden_layers=1)))
        text, empty = self.write("text", self.TEXT), self.write("empty", b"")
        cases = [
            ((dense, text), 1, "dense"),
            ((self.model, empty), 1, "no token"),
            ((self.model, self.path("nowhere")), 1, "cannot open"),
            ((self.model, text, "--json", self.path("no/such")), 1, "cannot create"),
            ((self.model, text, "--svg", "/dev/full"), 1, "cannot write"),
            ((self.model, text, "--devices", 3), 2, "does not divide"),
            ((self.model, text, "--devices", 4, "--max-devices", 5), 2, "--max-devices"),
            ((os.path.join(GOLDENS, "lite"), text), 1, "tokenizer"),
        ]
        for arguments, status, reason in cases:
            with self.subTest(arguments):
                result = dsv2("experts", *arguments)
                self.assertEqual(result.status, status)
                self.assertIn(reason, result.err)


class Inspect(ToolTest):
    def test_the_facts_are_those_of_the_configuration(self):
        for golden in ("lite", "full", "plain", "v3"):
            with self.subTest(golden):
                folder = os.path.join(GOLDENS, golden)
                with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
                    config = json.load(file)
                got = json.loads(self.run_well("inspect", folder, "--json"))
                self.assertEqual(got["container"], "safetensors")
                self.assertEqual(got["chat_form"], "no tokenizer")
                for name, value in got.items():
                    if name in config and name not in ("architecture",):
                        self.assertEqual(value, config[name] if config[name] is not None else 0, name)
                self.assertLessEqual(got["parameters_activated"], got["parameters"])
                self.assertGreater(got["parameters_activated"], 0)
                words = self.run_well("inspect", folder).decode()
                for name, value in got.items():
                    self.assertRegex(words, rf"(?m)^{name} +{value}$")

    def test_any_path_gives_valid_json(self):
        odd = tiny_model.make(os.path.join(GOLDENS, "lite"), self.path('a "quoted"\\ n\n\u00fc'))
        self.assertEqual(json.loads(self.run_well("inspect", odd, "--json"))["path"], odd)


class Packs(ToolTest):
    IDS = [0] + [i * 37 % 382 + 2 for i in range(40)]

    def difference(self, model):
        """Mean KL divergence of the next token's distribution from the checkpoint's, in nats."""

        def log_softmax(row):
            top = max(row)
            total = top + math.log(sum(math.exp(x - top) for x in row))
            return [x - total for x in row]

        divergence = 0.0
        for expected, got in zip(self.logits(self.model, self.IDS), self.logits(model, self.IDS)):
            p, q = log_softmax(expected), log_softmax(got)
            divergence += sum(math.exp(a) * (a - b) for a, b in zip(p, q))
        return divergence / len(self.IDS)

    def test_a_pack_is_the_model_in_one_file(self):
        pack = self.path("stored.dsv2")
        self.assertEqual(self.run_well("pack", self.model, pack), b"")
        self.assertEqual(self.logits(pack, self.IDS), self.logits(self.model, self.IDS))
        model, packed = (json.loads(self.run_well("inspect", path, "--json")) for path in (self.model, pack))
        self.assertEqual((packed["container"], packed["parameters"]), ("pack", model["parameters"]))
        command = ["--prompt", "Once", "--max-tokens", 9]
        self.assertEqual(self.run_well("generate", pack, *command), self.run_well("generate", self.model, *command))

    def test_smaller_types_lose_little_and_less_with_more_bits(self):
        losses = {}
        for kind, bound in (("q8_0", 0.01), ("q6_k", 0.02), ("q5_k", 0.05), ("q4_k", 0.2), ("q4_0", 0.2)):
            with self.subTest(kind):
                pack = self.path(kind + ".dsv2")
                self.run_well("pack", self.model, pack, "--type", kind)
                losses[kind] = self.difference(pack)
                self.assertLess(losses[kind], bound)
        self.assertLess(losses["q8_0"], losses["q6_k"])
        self.assertLess(losses["q6_k"], losses["q4_k"])

    def test_damage_is_found_by_verify(self):
        pack = self.path("whole.dsv2")
        self.run_well("pack", self.model, pack)
        self.assertEqual(self.run_well("inspect", pack, "--verify"), self.run_well("inspect", pack))
        with open(pack, "rb") as file:
            data = bytearray(file.read())
        data[len(data) * 2 // 3] ^= 4
        result = dsv2("inspect", self.write("damaged.dsv2", data), "--verify")
        self.assertEqual((result.status, result.out), (1, b""))
        self.assertIn("damaged.dsv2", result.err)
        self.assertEqual(dsv2("inspect", self.model, "--verify").status, 1)

    def test_what_cannot_be_packed_is_said(self):
        for arguments, status, reason in (
            ([self.model], 2, "expected"),
            ([self.model, self.path("x"), "--type", "q3_k"], 2, "q3_k"),
            ([self.path("missing"), self.path("x")], 1, self.path("missing")),
            ([self.model, os.path.join(self.path("missing"), "x")], 1, self.path("missing")),
        ):
            with self.subTest(arguments):
                result = dsv2("pack", *arguments)
                self.assertEqual((result.status, result.out), (status, b""))
                self.assertIn(reason, result.err)
                self.assertFalse(os.path.exists(self.path("x")))


class Bench(ToolTest):
    def test_rates_are_reported_for_what_was_asked(self):
        settings = ["--prompt", 20, "--generate", 3, "--depth", 10, "--sessions", 3, "--repeat", 3]
        got = json.loads(self.run_well("bench", self.model, *settings, "--json"))
        self.assertEqual((got["sessions"], got["depth"], got["prompt"]["tokens"], got["generate"]["tokens"]), (3, 10, 20, 3))
        for part in ("prompt", "generate"):
            rate = got[part]["tokens_per_second"]
            self.assertTrue(0 < rate["min"] <= rate["median"] <= rate["max"])
        self.assertTrue(0 < got["open_seconds"] < got["first_token_seconds"])
        none = json.loads(self.run_well("bench", self.model, "--prompt", 0, "--generate", 1, "--repeat", 1, "--json"))
        self.assertNotIn("prompt", none)
        words = self.run_well("bench", self.model, "--prompt", 5, "--generate", 2, "--repeat", 2).decode()
        self.assertRegex(words, r"(?m)^prompt +5 tokens +[\d.]+ tokens/s +\([\d.]+ to [\d.]+\)$")

    def test_what_was_fed_beforehand_is_kept_and_grows(self):
        def kept(depth):
            self.run_well("bench", self.model, "--prompt", 0, "--generate", 1, "--repeat", 1, "--depth", depth, "--keep", file)
            return json.loads(self.run_well("inspect", file, "--json"))["tokens"]

        file = self.path("kept")
        self.assertEqual([kept(20), kept(70), kept(30)], [20, 70, 70])
        size = os.path.getsize(file)
        self.assertEqual(kept(70), 70)
        self.assertEqual(os.path.getsize(file), size)  # nothing was fed, so nothing was added


class Progress(ToolTest):
    def test_a_terminal_gets_a_bar_that_goes_away_and_a_pipe_nothing(self):
        for repeats in (20, 80, 320, 1280):  # a bar comes after a third of a second, however fast the build is
            text = self.write("long", b"It was a long and winding road that they went. " * repeats)
            command = ["perplexity", self.model, text, "--kernels", "c", "--threads", "1"]
            terminal = Terminal(*command)
            self.assertEqual(terminal.wait(), 0)
            if b"Measuring [" in terminal.seen:
                break
        shown = terminal.seen.decode()
        self.assertIn("Measuring [", shown)
        self.assertIn("%\r\033[Kperplexity per token", shown)
        plain = self.run_well(*command).decode()
        self.assertTrue(shown.endswith(plain.replace("\n", "\r\n")))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
