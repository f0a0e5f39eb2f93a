"""Writes chat_templates.json: templates with what Jinja 3.1 makes of them, the reference for tests/unit/test_template.c.

Needs the package jinja2; the tests need the JSON alone. All templates were written for this purpose. Jinja is set up as
transformers does it.

    python3 tests/data/make_chat_templates.py > tests/data/chat_templates.json
"""
import copy
import datetime
import json
import random

import jinja2
import jinja2.ext
from jinja2.sandbox import SandboxedEnvironment

NOW = 1732800000
WORDS = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}

VARIABLES = {
    "messages": [
        {"role": "system", "content": "Be\n  brief. "},
        {"role": "user", "content": " Größe 你好 😀\n"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c0", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [2.5, None]}}}]},
        {"role": "tool", "content": "3", "tool_call_id": "c0"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
    ],
    "tools": [{"type": "function", "function": {"name": "add", "description": "a < b & 'c' \"d\"",
                                                "parameters": {"type": "object", "properties": {}}}}],
    "add_generation_prompt": True,
    "n": 7, "m": -2, "f": 2.5, "yes": True, "no": False, "none_value": None, "empty": "", "s": "Hello, World",
    "list": [3, 1, 2, 1], "map": {"b": 1, "a": {"c": "x"}}, "words": ["b", "A", "c"],
    "objects": [{"k": "x", "v": 1}, {"k": "y", "v": 2}, {"k": "x"}],
}

EXPRESSIONS = """
n + m
n - m * 2
n / 2
n // 2
m // 2
n % 3
m % 3
-n
+f
f * 2
10 / 4
1 + 2.0
"a" + "b"
"a" * 3
"a" ~ 1 ~ none ~ 2.0 ~ true
[1, 2] + [3]
n == 7
n == 7.0
n != 7
1 < 2 < 3
1 < 3 < 2
"a" < "b"
not yes
yes and no
no or "x"
"" or 0
n > 3 and m < 0 or no
not (n in list)
3 in list
3 not in list
"ello" in s
"b" in map
none_value is none
missing is defined
missing is undefined
missing
missing is not defined
n is number
n is integer
f is float
s is string
list is iterable
list is sequence
map is mapping
s is mapping
yes is true
yes is boolean
n is odd
n is even
n is divisibleby 7
n is divisibleby(2)
"x" if yes else "y"
"x" if no
"x" if no else "y" if no else "z"
s[0]
s[-1]
s[1:4]
s[:-1]
s[::2]
s[::-1]
list[1:]
list[-2:]
list[::-1]
list[10:]
list[0]
map.b
map["a"].c
map.a["c"]
map.missing
map.a.missing is defined
map.get("b")
map.get("zz")
map.get("zz", 5)
map.items() | list
map.keys() | list
map.values() | list
map | items | list
map | length
messages | length
messages[0].content
messages[-1]["content"][1].text
s.upper()
s.lower()
s.title()
s.capitalize()
s.split(",")
s.split(", ")[1]
s.split()
"a,b,c".split(",", 1)
"a,b,c".rsplit(",", 1)
" x ".strip()
"xxaxx".strip("x")
"xxaxx".lstrip("x")
"xxaxx".rstrip("x")
s.startswith("He")
s.endswith("ld")
s.endswith("He")
s.replace("l", "L")
s.replace("l", "L", 1)
s.find("o")
s.find("zz")
s.rfind("o")
s.count("l")
"12".isdigit()
"a\\nb\\n".splitlines()
"prefix-x".removeprefix("prefix-")
"x.txt".removesuffix(".txt")
", ".join(words)
words | join(", ")
words | join
objects | join("|", attribute="k")
list | sum_missing
list | first
list | last
list | length
list | count
list | reverse | list
s | reverse
list | unique | list
list | map("string") | list
objects | map(attribute="k") | list
objects | map(attribute="v", default=0) | list
objects | selectattr("v") | list | length
objects | selectattr("k", "equalto", "x") | list | length
objects | rejectattr("k", "equalto", "x") | list | length
list | select("odd") | list
list | reject("odd") | list
list | select("gt", 1) | list
words | map("upper") | join
s | upper
s | lower
s | title
s | capitalize
s | trim
"  x " | trim
"xxaxx" | trim("x")
s | replace("o", "0")
s | length
s | list
"a\\nb\\n\\nc" | indent
"a\\nb\\n\\nc" | indent(2)
"a\\nb\\n\\nc" | indent(2, true)
"a\\nb\\n\\nc" | indent(2, true, true)
"5" | int
"x" | int
"x" | int(3)
2.9 | int
-3 | abs
n | string
f | string
missing | default("d")
none_value | default("d")
none_value | default("d", true)
empty | default("d", boolean=true)
missing | d("e")
map | tojson
map | tojson(indent=2)
tools | tojson
tools | tojson(indent=4)
tools | tojson(separators=(",", ":"))
"é\\u2028</x>" | tojson
"é" | tojson(ensure_ascii=true)
map | tojson(sort_keys=true)
[1, 2.5, none, true, "x"] | tojson
{"k": [1, {"z": none}]} | tojson
0.1 + 0.2
1.0
"quote\\"s and 'single'"
['a', "b'c", 1, none, true, 2.0, {"k": "v"}, (1, 2), (1,)]
{"a": 1, 'b': "x"}
dict(a=1, b="x")
range(3) | list
range(1, 4) | list
range(5, 0, -2) | list
namespace(a=1).a
strftime_now("%d %b %Y")
strftime_now("%Y-%m-%d %H:%M:%S %B %%")
("a", "b")[1]
"%" ~ "x"
'tab\\tnew\\nback\\\\'
raise_exception("no " ~ n)
undefined_function(1)
missing.attribute
missing + 1
n / 0
n + "x"
list.append(4)
s is startswith("x")
s | nofilter
[x for x in list]
lambda: 1
s.__class__
"abc"[5]
list[9]
list["x"]
map[1]
""".strip("\n").split("\n")

STATEMENTS = [
    "{% for x in list %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ x }};{% endfor %}",
    "{% for x in list %}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}",
    "{% for x in [] %}a{% else %}none{% endfor %}",
    "{% for x in list if x > 1 %}{{ loop.index }}:{{ x }} {% endfor %}",
    "{% for k, v in map.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k in map %}{{ k }};{% endfor %}",
    "{% for c in 'héy' %}[{{ c }}]{% endfor %}",
    "{% for x in list %}{% if x == 1 %}{% continue %}{% endif %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in [1, 2] %}{% for y in [3, 4] %}{{ loop.index }}{{ x * y }} {% endfor %}{{ loop.index }}{% endfor %}",
    "{% for x in [1, 2] %}{{ loop.cycle('a', 'b', 'c') }}{% endfor %}",
    "{% set x = 1 %}{% for y in list %}{% set x = y %}{% endfor %}{{ x }}",
    "{% set ns = namespace(x=1, l=[]) %}{% for y in list %}{% set ns.x = ns.x + y %}{% endfor %}{{ ns.x }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set block %}a{{ n }}b{% endset %}[{{ block }}]",
    "{% if no %}a{% elif n == 7 %}b{% else %}c{% endif %}",
    "{% if missing %}a{% else %}b{% endif %}",
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% endif %}",
    "{% macro tag(name, text='t', last=false) %}<{{ name }}>{{ text }}{% if last %}.{% endif %}{% endmacro %}{{ tag('a') }}{{ tag('b', 'x', last=true) }}",
    "{% macro outer(x) %}{{ inner(x) }}{{ inner(x + 1) }}{% endmacro %}{% macro inner(x) %}[{{ x }}]{% endmacro %}{{ outer(1) }}",
    "{% macro m(x) %}{{ x }}{{ n }}{% endmacro %}{{ m('a') | upper }}",
    "  {% if yes %}\n  line\n  {% endif %}\n  tail",
    "a\n{%- if yes -%}\n b \n{%- endif -%}\n c",
    "a {{- ' b ' -}} c",
    "{# comment #}x{#- trimmed -#} y",
    "{% raw %}{{ not }}{% endraw %}",
    "x\n",
    "x\n\n",
    "{{ 'a' }}\n{{ 'b' }}",
    "{% set loop_messages = messages[1:] %}{% for m in loop_messages %}{{ m.role }} {% endfor %}",
    "{% for m in messages %}{% if m.tool_calls is defined and m.tool_calls %}{% for t in m.tool_calls %}{{ t.function.name }}{{ t.function.arguments | tojson }}{% endfor %}{% endif %}{% endfor %}",
    "{% for m in messages %}{% if m.content is string %}{{ m.content | trim }}{% elif m.content is iterable %}{% for part in m.content %}{{ part.text }}{% endfor %}{% else %}none{% endif %};{% endfor %}",
    "{{ bos_token }}{{ eos_token }}{{ pad_token }}",
    "{% if yes %}",
    "{% endif %}",
    "{{ n",
    "{{ }}",
    "{% set l = [] %}{% set _ = l.append(5) %}{{ l }}",
    "{{ raise_exception('stop ' + s) }}",
    "{% for m in messages %}{{ raise_exception('roles must alternate') if loop.index0 % 2 else m.role }}{% endfor %}",
    "{%+ if yes %}x{% endif %}",
    "   {%+ if yes +%}\nx{% endif %}",
    "{{ '\\u00e9\\x41' }}",
    "{{ 'it''s' }}",
    "{{ messages }}",
    "{{ tools[0].function }}",
    "{{ true }} {{ True }} {{ none }} {{ None }} {{ false }}",
    "{% if 'x' is in ['x'] %}in{% endif %}{% if 'y' not in ['x'] %}out{% endif %}",
    "{{ ('a' ~ 'b').upper() }}{{ 'a' ~ 'b' | upper }}",
    "{{ 1 if 0 else 2 + 3 }}{{ (1, 2, 3)[1:] }}",
    "{{ n > 3 }}{{ not n > 3 }}{{ not not n }}",
    "{{ - n | abs }}{{ -3 | abs }}{{ 2 - -2 }}",
]

# What a chat template has no need of: refused by name when the template is parsed.
OUTSIDE = [
    "{{ n ** 2 }}",
    "{{ s.format(1) }}",
    "{% block a %}{% endblock %}",
    "{% filter upper %}a{% endfilter %}",
    "{% with a = 1 %}{{ a }}{% endwith %}",
    "{% autoescape true %}{% endautoescape %}",
    "{% for x in list recursive %}{{ x }}{% endfor %}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{% call m() %}{% endcall %}",
    "{% do list.append(1) %}",
    "{% set d = {} %}{% set _ = d.update({'a': 1}) %}{{ d }}",
    "{{ s | nofilter }}",
    "{{ s is nothing }}",
    "{{ f(*list) }}",
    "{{ undefined_function(1) }}",
]

CHATS = {
    "turns as text": "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n\n' }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\n\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ 'Assistant: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
    "turns as marks": """{{- bos_token }}
{%- set ns = namespace(system='', turn=0) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = ns.system ~ message.content %}
    {%- endif %}
{%- endfor %}
{{- ns.system }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set ns.turn = ns.turn + 1 %}
        {{- '<|user|>' + message.content | trim }}
    {%- elif message.role == 'assistant' %}
        {{- '<|assistant|>' + message.content.split('</think>')[-1] + eos_token }}
    {%- elif message.role == 'tool' %}
        {{- '<|tool|>' ~ message.content }}
    {%- elif message.role != 'system' %}
        {{- raise_exception('unknown role ' ~ message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
    {%- if thinking is defined and thinking %}{{ '<think>\n' }}{% endif %}
{%- endif %}
""",
    "tools": """{%- macro describe(tool) -%}
{{ tool.function.name }}: {{ tool.function.description | default('no description', true) }}
{{ tool.function.parameters | tojson(indent=2) }}
{%- endmacro -%}
{%- if tools %}
<|system|>You have these tools:
{% for tool in tools %}
{{ describe(tool) }}
{% endfor %}
{% endif %}
{%- for m in messages -%}
{%- if loop.first and m.role == 'assistant' %}{{ raise_exception('an assistant cannot begin') }}{% endif -%}
<|{{ m.role }}|>
{%- if m.tool_calls %}
{%- for call in m.tool_calls %}
<call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson if call.function.arguments is mapping else call.function.arguments }}}</call>
{%- endfor %}
{%- else %}{{ m.content }}{% endif %}<|end|>
{% endfor -%}
{% if add_generation_prompt %}<|assistant|>{% endif %}""",
}

RANDOM = random.Random(24)


def text():
    parts = ["Hi", " ", "\n", "  x", "Größe", "你好", "😀", "<|user|>", "<|eos|>", "</think>", "'", '"', "\\", "{{ x }}", ""]
    return "".join(RANDOM.choice(parts) for _ in range(RANDOM.randint(0, 5)))


def conversation():
    messages = []
    if RANDOM.random() < 0.4:
        messages.append({"role": "system", "content": text()})
    in_turns = RANDOM.random() < 0.6
    for i in range(RANDOM.randint(1, 5)):
        role = ["user", "assistant"][i % 2] if in_turns else RANDOM.choice(["user", "assistant", "system", "tool", "critic"])
        message = {"role": role, "content": text()}
        if role == "assistant" and RANDOM.random() < 0.3:
            message["tool_calls"] = [{"function": {"name": "add", "arguments": RANDOM.choice(['{"a": 1}', {"a": [1, 2.5]}])}}]
        messages.append(message)
    variables = {"messages": messages, "add_generation_prompt": RANDOM.random() < 0.8}
    if RANDOM.random() < 0.4:
        variables["tools"] = VARIABLES["tools"]
    if RANDOM.random() < 0.3:
        variables["thinking"] = RANDOM.random() < 0.5
    return variables


def environment():
    env = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(f)
    return env


def render(env, template, variables):
    try:
        return {"text": env.from_string(template).render(**WORDS, **copy.deepcopy(variables))}
    except Exception as error:
        return {"error": str(error)}


def main():
    env = environment()
    cases = []
    for template in ["{{ " + e + " }}" for e in EXPRESSIONS] + STATEMENTS:
        cases.append({"template": template, **render(env, template, VARIABLES)})
    for name, template in CHATS.items():
        for _ in range(40):
            variables = conversation()
            cases.append({"name": name, "variables": variables, **render(env, template, variables)})
    print(json.dumps({"now": NOW, "words": WORDS, "variables": VARIABLES, "templates": CHATS, "cases": cases, "outside": OUTSIDE},
                     ensure_ascii=False, indent=0))


main()
