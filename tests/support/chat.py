"""Chat templates for tiny models."""

from __future__ import annotations

from betaedit.models import LanguageModel

TEMPLATE = (
    "{% for message in messages %}<s>{{ message.role }}\n{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    "{% for message in messages %}<s>{{ message.content }}\n{% endfor %}"
)


def with_chat(model: LanguageModel, template: str = TEMPLATE) -> LanguageModel:
    """``model`` whose tokenizer has a chat template."""
    model.tokenizer.chat_template = template
    return model
