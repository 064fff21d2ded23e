"""Train the tiny demo Llama (1.0 M parameters) on the King James Bible.

The text is public domain; Debian ships it (packages bible-kjv, bible-kjv-text):

    bible -f 'gen1:1-rev22:21' > kjv.txt
    python train.py kjv.txt out

The last 5% of the verses are held out from tokenizer and model alike.
"""

import argparse
import json
import math
import re
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

BOS, EOS = "<s>", "</s>"


def read_chapters(path):
    """-> (train, held-out) lists of chapters; a chapter is one verse per line."""
    verses = [
        re.fullmatch(r"(\S+):\d+ (.*)", line).groups() for line in Path(path).read_text(encoding="utf-8").splitlines()
    ]
    cut = int(len(verses) * 0.95)
    parts = []
    for part in (verses[:cut], verses[cut:]):
        chapters = {}
        for chapter, text in part:
            chapters.setdefault(chapter, []).append(text.strip() + "\n")
        parts.append(["".join(lines) for lines in chapters.values()])
    return parts


def train_tokenizer(chapters, vocab_size):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        chapters,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[BOS, EOS],
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    return tok


def save_tokenizer(tok, out, max_length):
    tok.save(str(out / "tokenizer.json"), pretty=False)
    (out / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": BOS,
                "eos_token": EOS,
                "pad_token": EOS,
                "clean_up_tokenization_spaces": False,
                "model_input_names": ["input_ids", "attention_mask"],
                "model_max_length": max_length,
            },
            indent=2,
        )
        + "\n",
        encoding="utf-8",
    )


def stream(tok, chapters):
    ids = []
    for enc in tok.encode_batch(chapters):
        ids += [tok.token_to_id(BOS), *enc.ids, tok.token_to_id(EOS)]
    return torch.tensor(ids)


@torch.no_grad()
def evaluate(model, ids, seq, batch=32):
    """Mean loss per token over consecutive windows of seq tokens."""
    model.eval()
    n = (len(ids) - 1) // seq
    x, y = ids[: n * seq].view(n, seq), ids[1 : n * seq + 1].view(n, seq)
    loss = sum(
        F.cross_entropy(model(input_ids=a).logits.float().flatten(0, 1), b.flatten(), reduction="sum").item()
        for a, b in zip(x.split(batch), y.split(batch), strict=True)
    )
    model.train()
    return loss / (n * seq)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("text")
    p.add_argument("out", type=Path)
    p.add_argument("--steps", type=int, default=6000)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--seq", type=int, default=256)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)

    train_text, held_text = read_chapters(args.text)
    tok = train_tokenizer(train_text, 2048)
    train, held = stream(tok, train_text), stream(tok, held_text)
    bos, eos = tok.token_to_id(BOS), tok.token_to_id(EOS)
    print(f"tokens: train {len(train)}, held out {len(held)}", flush=True)

    config = LlamaConfig(
        vocab_size=tok.get_vocab_size(),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=bos,
        eos_token_id=eos,
    )
    model = LlamaForCausalLM(config)
    params = list(model.parameters())
    print(f"parameters: {sum(w.numel() for w in params)}", flush=True)

    opt = torch.optim.AdamW(
        [
            {"params": [w for w in params if w.ndim > 1], "weight_decay": 0.1},
            {"params": [w for w in params if w.ndim < 2], "weight_decay": 0.0},
        ],
        lr=args.lr,
        betas=(0.9, 0.95),
    )
    warmup = max(1, args.steps // 40)

    def schedule(step):  # linear warm-up, then cosine down to 10%
        if step < warmup:
            return (step + 1) / warmup
        t = (step - warmup) / max(1, args.steps - warmup)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * t))

    sched = torch.optim.lr_scheduler.LambdaLR(opt, schedule)

    # Every window starts a verse (or a chapter, at its <s>).
    newline = tok.token_to_id("\u010a")  # "\n" in the byte-level alphabet
    first = torch.isin(train, torch.tensor([newline, bos])).roll(1) | (train == bos)
    starts = first[: -args.seq - 1].nonzero().flatten()
    span = torch.arange(args.seq + 1)
    began = time.time()
    for step in range(args.steps):
        at = starts[torch.randint(len(starts), (args.batch,))]
        window = train[at[:, None] + span]
        logits = model(input_ids=window[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        sched.step()
        opt.zero_grad()
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            line = f"step {step + 1} loss {loss.item():.3f} {time.time() - began:.0f}s"
            if (step + 1) % 500 == 0 or step + 1 == args.steps:
                line += f" held-out {evaluate(model, held, args.seq):.4f}"
            print(line, flush=True)

    model = model.to(torch.bfloat16).eval()
    loss = evaluate(model, held, args.seq)
    print(f"held-out in bfloat16: loss {loss:.4f} perplexity {math.exp(loss):.2f}")
    model.generation_config = GenerationConfig(bos_token_id=bos, eos_token_id=eos, pad_token_id=eos)
    model.save_pretrained(args.out)
    save_tokenizer(tok, args.out, config.max_position_embeddings)


if __name__ == "__main__":
    main()
