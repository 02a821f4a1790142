"""Chat templates and chats for tests: SmolLM2's own, and some in other models' style."""

# From SmolLM2-135M-Instruct's tokenizer (Apache-2.0). BOS is also what opens a turn.
SMOLLM2 = (
  "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
  "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
  "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
  "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
  "{% endif %}"
)

# As Llama 3: BOS, trimmed messages, a system block that is always there.
LLAMA3_STYLE = """\
{{- bos_token }}
{%- set fixed = 'Knowledge ends in the past.' %}
{%- if messages[0]['role'] == 'system' %}
  {%- set system = messages[0]['content'] | trim %}
  {%- set turns = messages[1:] %}
{%- else %}
  {%- set system = '' %}
  {%- set turns = messages %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + fixed + '\\n\\n' + system + '<|eot_id|>' }}
{%- for message in turns %}
  {%- if message.role not in ['user', 'assistant'] %}
    {%- continue %}
  {%- endif %}
  {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
  {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# As Gemma: refuses system messages, insists on turns, calls the assistant "model".
GEMMA_STYLE = (
  "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not "
  "supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != "
  "(loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
  "{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}"
  "{% set role = message['role'] %}{% endif %}"
  "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

# As Qwen 3: drops the thoughts of earlier turns, and leaves it to the model to open its own unless
# `enable_thinking` is false; with the tags and filters that transformers adds.
QWEN3_STYLE = """\
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
            {{- content + '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if tools %}
    {{- tools | tojson }}
{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# As QwQ: no system block of its own, thoughts of earlier turns dropped, the next one opened.
QWQ_STYLE = """\
{%- for turn in messages %}
  {{- '<|im_start|>' ~ turn.role ~ '\\n' }}
  {%- if turn.role == 'assistant' and not loop.last %}
    {{- (turn.content.split('</think>') | last).lstrip('\\n') }}
  {%- else %}
    {{- turn.content }}
  {%- endif %}
  {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n<think>\\n' }}
{%- endif %}
"""

# As DeepSeek-R1-Distill at first: BOS, then the system text as it is; thoughts of earlier turns are
# dropped, the white space after them is not.
R1_STYLE = """\
{{- bos_token }}
{%- for turn in messages %}
  {%- if turn.role == 'system' %}
    {{- turn.content }}
  {%- elif turn.role == 'user' %}
    {{- '<\uff5cUser\uff5c>' ~ turn.content }}
  {%- else %}
    {{- '<\uff5cAssistant\uff5c>' ~ turn.content.split('</think>')[-1] }}
    {{- '<\uff5cend\u2581of\u2581sentence\uff5c>' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<\uff5cAssistant\uff5c>' }}
{%- endif %}
"""

# As DeepSeek-R1-Distill since: the prompt opens the thought.
R1_OPENING_STYLE = R1_STYLE.replace(
  "{{- '<\uff5cAssistant\uff5c>' }}", "{{- '<\uff5cAssistant\uff5c><think>\\n' }}"
)
R1_BOS, R1_EOS = (
  "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
  "<\uff5cend\u2581of\u2581sentence\uff5c>",
)

# name → template, BOS, EOS
TEMPLATES = {
  "smollm2": (SMOLLM2, "<|im_start|>", "<|im_end|>"),
  "llama3_style": (LLAMA3_STYLE, "<|begin_of_text|>", "<|eot_id|>"),
  "gemma_style": (GEMMA_STYLE, "<bos>", "<eos>"),
  "qwen3_style": (QWEN3_STYLE, None, "<|im_end|>"),
  "qwq_style": (QWQ_STYLE, None, "<|im_end|>"),
  "r1_style": (R1_STYLE, R1_BOS, R1_EOS),
  "r1_opening_style": (R1_OPENING_STYLE, R1_BOS, R1_EOS),
}


def _chat(*turns: str) -> list[dict[str, str]]:
  """Reads "s: …", "u: …" and "a: …" as messages."""
  names = {"s": "system", "u": "user", "a": "assistant"}
  return [{"role": names[turn[0]], "content": turn[3:]} for turn in turns]


CHATS: dict[str, list[dict[str, str]]] = {
  "question": _chat("u: What is 2 + 2?"),
  "empty": _chat("u: "),
  "white": _chat("u:  \n padded\t\n"),
  "markup": _chat("u: {{ x }} {% if %} <b>&amp;</b> 'q' \"d\""),
  "unicode": _chat("u: na\u00efve \U0001f44b\U0001f3fd \u4f60\u597d \u05e9\u05dc\u05d5\u05dd"),
  "lookalike": _chat("u: user", "a: assistant", "u: system"),
  "two turns": _chat("u: Hi", "a: Hello!", "u: Bye"),
  "thoughts": _chat("u: Hi", "a: <think>\nwhich one?\n</think>\n\nHello!", "u: Bye"),
  "thought opened before": _chat("u: Hi", "a: which one?\n</think>\n\nHello!", "u: Bye"),
  "padded thoughts": _chat("u:  Hi\n", "a: \n<think></think>\n Hello! ", "u: <think>\n"),
  "system": _chat("s: You are terse.", "u: Hi"),
  "empty system": _chat("s: ", "u: Hi"),
  "padded system": _chat("s:  a \n", "u:  b ", "a:  c\n", "u: \n"),
}
