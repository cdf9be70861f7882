"""A stand-in for vLLM's `/completions` with `prompt_logprobs`, which asks a tiny model."""

import torch

TEACHER = "the-teacher"


def answer(model, tokenizer, request, largest=20):
    """The reply to a request: a status and its explanation, or the log-probabilities of each token of the prompt."""
    body = request["body"]
    if (k := body["prompt_logprobs"]) > largest:
        message = f"Requested prompt logprobs of {k}, which is greater than max allowed: {largest}"
        return 400, f'{{"error": {{"message": "{message}"}}}}', {}
    prompt, special = body["prompt"], body["add_special_tokens"]
    ids = tokenizer(prompt, add_special_tokens=special)["input_ids"] if isinstance(prompt, str) else prompt
    with torch.no_grad():
        logits = model.model(torch.tensor([ids])).logits[0, :-1, : model.vocab_size]
    logp = logits.log_softmax(-1)
    told = [told_of(row, token, k) for row, token in zip(logp, ids[1:], strict=True)]
    choice = {"index": 0, "text": "a", "prompt_logprobs": [None, *told], "prompt_token_ids": ids}
    return {"model": body["model"], "choices": [choice]}


def told_of(logp, token, k):
    ids = dict.fromkeys([token, *logp.topk(k).indices.tolist()])
    ranks = logp.argsort(descending=True).argsort()
    return {str(i): {"logprob": float(logp[i]), "rank": int(ranks[i]) + 1, "decoded_token": "?"} for i in ids}
