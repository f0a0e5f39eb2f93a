#!/usr/bin/env python3
"""Makes huggingface.json: what Hugging Face's tokenizers library (pip install tokenizers zstandard; seen with 0.23) gives for texts
that pre-tokenizers disagree on. Run in this folder; tests read the result only."""
import json

import zstandard
from tokenizers import Tokenizer

TEXTS = [
    '', 'a', '  a', 'a  ', '   a   b   ', '\t\ta', '\n', '\n\n\n', 'a\n', 'a \n b', 'a\r\nb\r\n\r\n', '\x0b\x0c\x1c\x85x',
    'a\xa0b\xa0\xa0c', '\u3000\u3000\u4e2d', '\u180ea \u180e b', '\u200b \ufeffa', 'a\u2028b\u2029',
    "I'm you'RE 'S 's'll'D", '1234567890', '3.14159, 1e-10', '\xbd\u2460\u2167\u0663\uff11x', 'x\xb2+y\xb3',
    'f\xfcr \xf6l, \xfc\xfc \xd6\xdc', '\xf7 \xc1\xc0\xff', 'u\u0308 e\u0301', '\xc4pfel \xdf\u1e9e \u017fS',
    '\u6211\u60f3\u5728apple\u5de5\u4f5c', '\u3042\u30a2\u30fb\u30fc\u6f22', '\uc548\ub155 \ud558\uc138\uc694',
    '\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!', '\u0645\u0631\u062d\u0628\u0627',
    '\u05e9\u05dc\u05d5\u05dd', '\u0928\u092e\u0938\u094d\u0924\u0947', '\U0001f680\U0001f469\u200d\U0001f4bb\u2705',
    '\U0001d538\U0001d7d9', '\U00020000\u3400', '\uff01\uff0c\uff1f\u3002\u300a\u300b', '!!! ... ---==>', '#include <a.h>',
    "x = {'a': [1,2]}", 'http://x.y/z?q=1&r=%20', 'a_b_c __init__', '<pad>', '<|EOT|>', '<\uff5cUser\uff5c>',
    '<\uff5cend\u2581of\u2581sentence\uff5c> a', '<\uff5cfim\u2581hole\uff5c><\uff5cfim\u2581\uff5c>', '\x00\x01\x7f',
    '\xad\u200d\u2060', '\u0e01\u0e32\u0e19', '\u1780\u17b6', '$100 \u20ac5 +1', '\u2200x\u2208\u2124', '^~`',
    '    def f(x):\n\t\treturn x\n\n\n', '\ue000\uffff',
]

V3_SPLITS = [r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
             "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
             "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]
NAMES = ["<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜User｜>", "<｜Assistant｜>"]
# DeepSeek-V3's expressions and marks over the other vocabulary.
V3 = {
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in V3_SPLITS
    ] + [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
    "added_tokens": [{"id": 100015 + i, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
                      "normalized": True, "special": False} for i, name in enumerate(NAMES)],
}
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
CHATS = [
    [["user", "Hello"]],
    [["system", "You are\nbrief. "], ["user", "Wer bist du?\n"]],
    [["user", " 1+1?"], ["assistant", "2"]],
    [["system", "S"], ["user", "你好！"], ["assistant", " (waves)\n\n"], ["user", ""], ["assistant", ""], ["user", "für\r\n  x"]],
]


def v2(messages):
    words = {"system": "%s\n\n", "user": "User: %s\n\n", "assistant": "Assistant: %s" + EOS}
    return BOS + "".join(words[r] % c for r, c in messages) + ("Assistant:" if messages[-1][0] == "user" else "")


def v25(messages):
    words = {"system": "%s", "user": "<｜User｜>%s", "assistant": "<｜Assistant｜>%s" + EOS}
    return BOS + "".join(words[r] % c for r, c in messages) + ("<｜Assistant｜>" if messages[-1][0] == "user" else "")


def load(name, changes=None):
    data = json.loads(zstandard.ZstdDecompressor().stream_reader(open(name + ".json.zst", "rb")).read())
    if changes:
        data["pre_tokenizer"] = changes["pre_tokenizer"]
        data["added_tokens"] += changes["added_tokens"]
    return Tokenizer.from_str(json.dumps(data))


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


llm, v3 = load("deepseek-llm"), load("deepseek-llm", V3)
out = {
    "v3": V3,
    "texts": TEXTS,
    "ids": {name: [ids(t, text) for text in TEXTS] for name, t in
            [("deepseek-llm", llm), ("deepseek-coder", load("deepseek-coder")), ("small", load("small")), ("v3", v3)]},
    "chats": CHATS,
    "v2_ids": [ids(llm, v2(m)) for m in CHATS],
    "v2.5_ids": [ids(v3, v25(m)) for m in CHATS],
    "fim_ids": ids(v3, BOS + "<｜fim▁begin｜>def f():\n  <｜fim▁hole｜>\n  return 1\n<｜fim▁end｜>"),
}
json.dump(out, open("huggingface.json", "w"), ensure_ascii=True, separators=(",", ":"))
