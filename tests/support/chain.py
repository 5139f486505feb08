"""A model whose every next token is known: it looks at the last token alone and follows a given chain of words."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from betaedit.models import LanguageModel
from support.tiny import tiny_tokenizer


def chain_model(*texts: str, bos: bool = False) -> LanguageModel:
    """A model that goes on as ``texts`` do: after a token of theirs comes the next one, after any other the end token.

    Args:
        texts: Each begins with a space, so that its words are tokens; a token that comes twice has one successor.
        bos: Whether its inputs open with ``<s>`` (then ``<s>`` is what follows other tokens).
    """
    tokenizer = tiny_tokenizer(bos=bos)
    n_tokens = len(tokenizer)
    config = LlamaConfig(
        vocab_size=n_tokens,
        hidden_size=n_tokens,
        intermediate_size=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=2,
        max_position_embeddings=200,
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    successor = torch.full((n_tokens,), tokenizer.bos_token_id)
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        successor[ids[:-1]] = torch.tensor(ids[1:])
    with torch.no_grad():
        for projection in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
            projection.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(n_tokens))
        model.lm_head.weight.copy_(torch.nn.functional.one_hot(successor, n_tokens).T)
    return LanguageModel.wrap(model, tokenizer, "chain")
