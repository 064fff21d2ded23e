"""The table of damaged and dishonest checkpoints: what is done to a sound model, and what is then said of it.

One table, and so one long file.
"""

import shutil
import struct

from tests.damage import (
    AWQ,
    CONFIG,
    EVIL,
    FP8,
    GPTQ,
    INDEX,
    INT8,
    NF4,
    NORM,
    POINTER,
    SHARDS,
    TOKENIZER,
    UP,
    WEIGHTS,
    Case,
    all_of,
    cast,
    entries,
    fields,
    folder,
    header,
    linear,
    link,
    loop,
    nested,
    odd_link,
    pipe,
    places,
    recoded,
    remove,
    replaced,
    size,
    socket,
    tensors,
    twice,
    twice_in_header,
    write,
)
from upcycle.families.pairs import DENSE

LINKED = "is a symbolic link out of the checkpoint; found BASE/kept; put the file itself in its place"
NO_FILE = "is not a regular file, or a link to none"
IS_POINTER = "is a Git LFS pointer, not the file itself; fetch the file itself with `git lfs pull`"
DEQUANTISE = "dequantise it first, or take the model that it was made from"
DENSE_LIES = "config.json says what mixtral cannot express"
OTHER_LAYERS = "the checkpoint is incomplete or its config is another model's"
FILE_NAME = "expected a .safetensors file name without directories"

# -- the table --------------------------------------------------------------------------------------------------------

SINGLE: dict[str, Case] = {
    # the file of the weights
    "truncated": Case(
        size(WEIGHTS, -1), f"MODEL/{WEIGHTS}: truncated; found 45439 bytes, expected 45440; download the file again"
    ),
    "trailing bytes": Case(
        size(WEIGHTS, 1), f"MODEL/{WEIGHTS}: trailing bytes after the last tensor; found 45441, expected 45440"
    ),
    "empty file": Case(write(WEIGHTS, b""), f"MODEL/{WEIGHTS}: too short; found 0 bytes, expected a safetensors file"),
    "seven bytes": Case(
        write(WEIGHTS, bytes(7)), f"MODEL/{WEIGHTS}: too short; found 7 bytes, expected a safetensors file"
    ),
    "LFS pointer": Case(write(WEIGHTS, POINTER), f"MODEL/{WEIGHTS}: {IS_POINTER}"),
    "LFS pointer, config": Case(write(CONFIG, POINTER), f"MODEL/{CONFIG}: {IS_POINTER}"),
    "LFS pointer, tokenizer.json": Case(write(TOKENIZER, POINTER), f"MODEL/{TOKENIZER}: {IS_POINTER}"),
    "LFS pointer, tokenizer.model": Case(write("tokenizer.model", POINTER), f"MODEL/tokenizer.model: {IS_POINTER}"),
    "web page in place of the weights": Case(
        write(WEIGHTS, b"<!DOCTYPE html><html><title>Sign in"),
        f"MODEL/{WEIGHTS}: header too large; found 5789751444030890300 bytes, expected at most 100 MB",
    ),
    "header of 2^63": Case(
        write(WEIGHTS, struct.pack("<Q", 2**63) + b"{}"),
        f"MODEL/{WEIGHTS}: header too large; found 9223372036854775808 bytes, expected at most 100 MB",
    ),
    "header above 100 MB": Case(
        write(WEIGHTS, struct.pack("<Q", 100_000_001) + b"{}"),
        f"MODEL/{WEIGHTS}: header too large; found 100000001 bytes, expected at most 100 MB",
    ),
    "header longer than the file": Case(
        write(WEIGHTS, struct.pack("<Q", 3) + b"{}"),
        f"MODEL/{WEIGHTS}: header longer than the file; found 10 bytes, expected at least 11; download the file again",
    ),
    "overlap": Case(
        entries(lambda e: e[UP].update(data_offsets=[0, 3072])),
        f"MODEL/{WEIGHTS}: tensor 'model.embed_tokens.weight': overlaps the tensor before it; found offset "
        "2293, expected 5365",
    ),
    "hole": Case(
        entries(lambda e: e.pop(UP)),
        f"MODEL/{WEIGHTS}: tensor 'model.layers.0.post_attention_layernorm.weight': leaves a hole before it; "
        "found offset 17615, expected 14543",
    ),
    "out of range": Case(
        entries(lambda e: e[NORM].update(data_offsets=[2**40, 2**40 + 64])),
        f"MODEL/{WEIGHTS}: tensor 'lm_head.weight': leaves a hole before it; found offset 39498, expected 39434",
    ),
    "negative offset": Case(
        entries(lambda e: e[UP].update(data_offsets=[-3072, 0])),
        f"MODEL/{WEIGHTS}: tensor '{UP}': shape and data_offsets must be lists of non-negative integers",
    ),
    "negative shape": Case(
        entries(lambda e: e[UP].update(shape=[-48, -32])),
        f"MODEL/{WEIGHTS}: tensor '{UP}': shape and data_offsets must be lists of non-negative integers",
    ),
    "shape of other bytes": Case(
        entries(lambda e: e[UP].update(shape=[48, 33])),
        f"MODEL/{WEIGHTS}: tensor '{UP}': size does not match its shape; found 3072 bytes, expected 2 bytes "
        "for each of the elements of [48, 33]",
    ),
    "shape beyond 64 bits": Case(
        entries(lambda e: e[UP].update(shape=[2**40, 2**40])),
        f"MODEL/{WEIGHTS}: tensor '{UP}': size does not match its shape; found 3072 bytes, expected 2 bytes "
        "for each of the elements of [1099511627776, 1099511627776]",
    ),
    "unknown dtype": Case(
        entries(lambda e: e[UP].update(dtype=EVIL)),
        f"MODEL/{WEIGHTS}: tensor '{UP}': unknown dtype; found '\\x1b[2J\\x07\\nx*26",
    ),
    "field too many": Case(
        entries(lambda e: e[UP].update(strides=[1])),
        f"MODEL/{WEIGHTS}: tensor '{UP}': malformed entry; expected exactly dtype, shape and data_offsets",
    ),
    "duplicate key, header": Case(twice_in_header(NORM), f"MODEL/{WEIGHTS}: not valid JSON (duplicate key '{NORM}')"),
    "duplicate key, long": Case(
        header(b'{"%s": {}, "%s": {}}' % ((b"k" * 9000,) * 2)),
        f"MODEL/{WEIGHTS}: tensor name too long; found 9,000 characters, 'k*40' to begin with, expected at most 512",
    ),
    "duplicate key, metadata": Case(
        header(b'{"__metadata__": {"a": "1", "a": "2"}}'), f"MODEL/{WEIGHTS}: not valid JSON (duplicate key 'a')"
    ),
    "name with control characters": Case(
        entries(lambda e: e.update({EVIL[:20]: e.pop(UP)})),
        f"MODEL/{WEIGHTS}: unsafe tensor name; found '\\x1b[2J\\x07\\nxxxxxxxxxxxxxx'",
    ),
    "name with ../": Case(
        entries(lambda e: e.update({"../../x": e.pop(UP)})), f"MODEL/{WEIGHTS}: unsafe tensor name; found '../../x'"
    ),
    "name that is absolute": Case(
        entries(lambda e: e.update({"/etc/x": e.pop(UP)})), f"MODEL/{WEIGHTS}: unsafe tensor name; found '/etc/x'"
    ),
    "name of 9,000 characters": Case(
        entries(lambda e: e.update({"n" * 9000: e.pop(UP)})),
        f"MODEL/{WEIGHTS}: tensor name too long; found 9,000 characters, 'n*40' to begin with, expected at most 512",
    ),
    "name of 9,000 characters, malformed": Case(
        entries(lambda e: e.update({"n" * 9000: {}})),
        f"MODEL/{WEIGHTS}: tensor name too long; found 9,000 characters, 'n*40' to begin with, expected at most 512",
    ),
    "deep JSON, header": Case(
        header(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        f"MODEL/{WEIGHTS}: tensor 'a': malformed entry; expected exactly dtype, shape and data_offsets",
    ),
    "invalid UTF-8, header": Case(
        header(b'{"\xff": {}}'), f"MODEL/{WEIGHTS}: not valid JSON (invalid start byte in UTF-8)"
    ),
    "UTF-16, header": Case(
        header("{}".encode("utf-16")), f"MODEL/{WEIGHTS}: not valid JSON (invalid start byte in UTF-8)"
    ),
    "byte order mark, header": Case(
        header(b"\xef\xbb\xbf{}"), f"MODEL/{WEIGHTS}: the header does not begin with an object"
    ),
    "NaN in the header": Case(
        header(b'{"x": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 1]}}'),
        f"MODEL/{WEIGHTS}: not valid JSON (NaN is not a JSON number)",
    ),
    "header that is a list": Case(header(b"[]"), f"MODEL/{WEIGHTS}: the header does not begin with an object"),
    "no weights": Case(remove(WEIGHTS), f"MODEL: holds no weights; expected {WEIGHTS} or {INDEX}"),
    "no config": Case(remove(CONFIG), f"MODEL/{CONFIG}: cannot be read (No such file or directory)"),
    "pickle": Case(
        lambda m: (m / WEIGHTS).rename(m / "pytorch_model.bin"),
        f"MODEL: holds pickled weights, which can run code when they are read; expected {WEIGHTS} or {INDEX}; "
        "--allow-pickle reads them as tensors and nothing else",
    ),
    # what is no file, or lies elsewhere
    "link out, weights": Case(replaced(link, WEIGHTS), f"MODEL/{WEIGHTS}: {LINKED}"),
    "link out, config": Case(replaced(link, CONFIG), f"MODEL/{CONFIG}: {LINKED}"),
    "link out, tokenizer": Case(replaced(link, TOKENIZER), f"MODEL/{TOKENIZER}: {LINKED}"),
    "link out, template": Case(replaced(link, "chat_template.jinja"), f"MODEL/chat_template.jinja: {LINKED}"),
    "link out, to what has control characters": Case(
        odd_link,
        f"MODEL/{CONFIG}: is a symbolic link out of the checkpoint; found 'BASE/\\x1b[2J\\x07\\nx*194'; put "
        "the file itself in its place",
    ),
    "link to itself, weights": Case(replaced(loop, WEIGHTS), f"MODEL/{WEIGHTS}: {NO_FILE}"),
    "link to itself, config": Case(replaced(loop, CONFIG), f"MODEL/{CONFIG}: {NO_FILE}"),
    "link to itself, tokenizer": Case(replaced(loop, TOKENIZER), f"MODEL/{TOKENIZER}: {NO_FILE}"),
    "pipe, weights": Case(replaced(pipe, WEIGHTS), f"MODEL/{WEIGHTS}: {NO_FILE}"),
    "pipe, config": Case(replaced(pipe, CONFIG), f"MODEL/{CONFIG}: {NO_FILE}"),
    "pipe, tokenizer": Case(replaced(pipe, TOKENIZER), f"MODEL/{TOKENIZER}: {NO_FILE}"),
    "pipe, index": Case(replaced(pipe, INDEX), f"MODEL/{INDEX}: {NO_FILE}"),
    "socket, weights": Case(replaced(socket, WEIGHTS), f"MODEL/{WEIGHTS}: {NO_FILE}"),
    "device, weights": Case(
        replaced(lambda _, path: path.symlink_to("/dev/zero"), WEIGHTS), f"MODEL/{WEIGHTS}: {NO_FILE}"
    ),
    "directory, weights": Case(replaced(folder, WEIGHTS), f"MODEL/{WEIGHTS}: {NO_FILE}"),
    "directory, config": Case(replaced(folder, CONFIG), f"MODEL/{CONFIG}: {NO_FILE}"),
    "directory, tokenizer": Case(replaced(folder, TOKENIZER), f"MODEL/{TOKENIZER}: {NO_FILE}"),
    # config.json and the tokenizer as JSON
    "duplicate key, config": Case(
        twice(CONFIG, "hidden_size"), f"MODEL/{CONFIG}: not valid JSON (duplicate key 'hidden_size')"
    ),
    "duplicate key, config, long": Case(
        write(CONFIG, b'{"%s": 1, "%s": 1}' % ((b"k" * 9000,) * 2)),
        f"MODEL/{CONFIG}: not valid JSON (duplicate key 'k*119)",
    ),
    "deep JSON, config": Case(nested(CONFIG), f"MODEL/{CONFIG}: not valid JSON (nested too deeply)"),
    "deep JSON, tokenizer": Case(
        nested(TOKENIZER),
        f"MODEL/{TOKENIZER}: not valid JSON (nested too deeply)",
    ),
    "huge JSON, config": Case(
        size(CONFIG, 100_000_000), f"MODEL/{CONFIG}: JSON file too large; found 100000307 bytes, expected at most 32 MB"
    ),
    "a number of 5,000 digits, config": Case(
        write(CONFIG, b'{"a": ' + b"9" * 5000 + b"}"),
        f"MODEL/{CONFIG}: not valid JSON (Exceeds the limit (4300 digits) for integer string conversion: "
        "value has 5000 digits; use sys.set_int_max_str_digits() to increase the limit)",
    ),
    "invalid UTF-8, config": Case(
        write(CONFIG, b'{"a": "\xff"}'), f"MODEL/{CONFIG}: not valid JSON (byte 7 is not UTF-8)"
    ),
    "invalid UTF-8, tokenizer": Case(
        write(TOKENIZER, b'{"a": "\xff"}'),
        f"MODEL/{TOKENIZER}: not valid JSON ('utf-8' codec can't decode byte 0xff in position 7: invalid start byte)",
    ),
    "UTF-16, config": Case(
        recoded(CONFIG, "utf-16"), f"MODEL/{CONFIG}: not valid JSON (it is UTF-16, where UTF-8 is expected)"
    ),
    "byte order mark, config": Case(
        recoded(CONFIG, "utf-8-sig"), f"MODEL/{CONFIG}: not valid JSON (it begins with a byte order mark)"
    ),
    "empty config": Case(
        write(CONFIG, b""), f"MODEL/{CONFIG}: not valid JSON (Expecting value: line 1 column 1 (char 0))"
    ),
    "cut config": Case(
        size(CONFIG, -1), f"MODEL/{CONFIG}: not valid JSON (Expecting ',' delimiter: line 1 column 307 (char 306))"
    ),
    "cut tokenizer": Case(
        size(TOKENIZER, -1), f"MODEL/{TOKENIZER}: not valid JSON (Expecting ',' delimiter: line 1 column 18 (char 17))"
    ),
    "NaN, config": Case(
        fields(rms_norm_eps=float("nan")), f"MODEL/{CONFIG}: not valid JSON (NaN is not a JSON number)"
    ),
    "Infinity, config": Case(
        fields(rope_theta=float("inf")), f"MODEL/{CONFIG}: not valid JSON (Infinity is not a JSON number)"
    ),
    "number out of range, config": Case(
        write(CONFIG, b'{"rope_theta": 1e999}'), f"MODEL/{CONFIG}: not valid JSON (1e999 is out of range)"
    ),
    "half a surrogate pair, config": Case(fields(prefix="\ud800"), f"MODEL/{CONFIG}: holds half of a surrogate pair"),
    "config that is a list": Case(
        write(CONFIG, b"[]"), f"MODEL/{CONFIG}: wrong JSON document; found list, expected an object"
    ),
    # a config that lies
    "a layer too many": Case(
        fields(num_hidden_layers=3),
        f"MODEL: the layers do not match {CONFIG} (num_hidden_layers); found 2 layers, expected 3, numbered "
        f"from 0; {OTHER_LAYERS}",
    ),
    "a layer too few": Case(
        fields(num_hidden_layers=1),
        f"MODEL: the layers do not match {CONFIG} (num_hidden_layers); found 2 layers, expected 1, numbered "
        f"from 0; {OTHER_LAYERS}",
    ),
    "layers, huge": Case(
        fields(num_hidden_layers=2**31 - 1),
        f"MODEL: the layers do not match {CONFIG} (num_hidden_layers); found 2 layers, expected 2147483647, "
        f"numbered from 0; {OTHER_LAYERS}",
    ),
    "intermediate_size": Case(
        fields(intermediate_size=47),
        f"MODEL/{WEIGHTS}: tensor 'model.layers.0.mlp.gate_proj.weight' does not match {CONFIG}; found (48, "
        "32), expected (47, 32)",
    ),
    "vocab_size": Case(
        fields(vocab_size=97),
        f"MODEL/{WEIGHTS}: tensor 'model.embed_tokens.weight' does not match {CONFIG}; found (96, 32), "
        "expected (97, 32)",
    ),
    "hidden_size": Case(
        fields(hidden_size=64),
        f"MODEL/{WEIGHTS}: tensor 'model.embed_tokens.weight' does not match {CONFIG}; found (96, 32), "
        "expected (96, 64)",
    ),
    "heads": Case(
        fields(num_attention_heads=8),
        f"MODEL/{WEIGHTS}: tensor 'model.layers.0.self_attn.k_proj.weight' does not match {CONFIG}; found "
        "(16, 32), expected (8, 32)",
    ),
    "heads, more than width": Case(fields(num_attention_heads=64), f"{CONFIG}: head_dim = 0: expected a size"),
    "key heads": Case(
        fields(num_key_value_heads=1),
        f"MODEL/{WEIGHTS}: tensor 'model.layers.0.self_attn.k_proj.weight' does not match {CONFIG}; found "
        "(16, 32), expected (8, 32)",
    ),
    "key heads that do not divide": Case(
        fields(num_key_value_heads=3),
        f"{CONFIG}: num_attention_heads is not a multiple of num_key_value_heads; found 4 and 3",
    ),
    "head_dim": Case(
        fields(head_dim=16),
        f"MODEL/{WEIGHTS}: tensor 'model.layers.0.self_attn.q_proj.weight' does not match {CONFIG}; found "
        "(32, 32), expected (64, 32)",
    ),
    "a string for a size": Case(fields(hidden_size="32"), f"{DENSE_LIES}: hidden_size = '32': expected a size"),
    "a float for a size": Case(fields(hidden_size=32.0), f"{DENSE_LIES}: hidden_size = 32.0: expected a size"),
    "a flag for a size": Case(
        fields(num_hidden_layers=True), f"{DENSE_LIES}: num_hidden_layers = True: expected a size"
    ),
    "a list for a size": Case(fields(vocab_size=[96]), f"{DENSE_LIES}: vocab_size = [96]: expected a size"),
    "a negative size": Case(fields(vocab_size=-96), f"{DENSE_LIES}: vocab_size = -96: expected a size"),
    "a size of zero": Case(fields(num_attention_heads=0), f"{DENSE_LIES}: num_attention_heads = 0: expected a size"),
    "a size beyond 64 bits": Case(
        fields(intermediate_size=10**400), f"{DENSE_LIES}: intermediate_size = 10*59: expected a size"
    ),
    "a null size": Case(fields(hidden_size=None), f"{CONFIG}: hidden_size is null"),
    "a negative head_dim": Case(fields(head_dim=-8), f"{CONFIG}: head_dim = -8: expected a size"),
    "a string for a number": Case(
        fields(rms_norm_eps="1e-5"), f"{DENSE_LIES}: rms_norm_eps = '1e-5': expected a number"
    ),
    "a word for a flag": Case(
        fields(tie_word_embeddings="false"), f"{DENSE_LIES}: tie_word_embeddings = 'false': expected a flag"
    ),
    "a string for rope_theta": Case(
        fields(rope_theta="1e4"), f"{CONFIG}: rope_theta is not a positive number; found '1e4'"
    ),
    "half a rope": Case(
        fields(partial_rotary_factor=0.5),
        f"{CONFIG}: partial_rotary_factor is not 1, which the dense class ignores; found 0.5",
    ),
    "many fields, long and with control characters": Case(
        fields(**{f"{n}{EVIL}": EVIL for n in range(99)}),
        f"{DENSE_LIES}: '0\\x1b[2J\\x07\\nx*45 = '\\x1b[2J\\x07\\nx*46: not known to have a counterpart; "
        "'1\\x1b[2J\\x07\\nx*45 = '\\x1b[2J\\x07\\nx*46: not known to have a counterpart; "
        "'2\\x1b[2J\\x07\\nx*45 = '\\x1b[2J\\x07\\nx*46: not known to have a counterpart; "
        "'3\\x1b[2J\\x07\\nx*45 = '\\x1b[2J\\x07\\nx*46: not known to have a counterpart; "
        "'4\\x1b[2J\\x07\\nx*45 = '\\x1b[2J\\x07\\nx*46: not known to have a counterpart; "
        "'5\\x1b[2J\\x07\\nx*45 = '\\x1b[2J\\x07\\nx*46: not known to have a counterpart; "
        "'6\\x1b[2J\\x07\\nx*45 = '\\x1b[2J\\x07\\nx*46: not known to have a counterpart; "
        "'7\\x1b[2J\\x07\\nx*45 = '\\x1b[2J\\x07\\nx*46: not known to have a counterpart; and 91 more; if a "
        "field has no influence, --ignore-config NAME leaves it out",
    ),
    # tensors
    "extra tensor": Case(
        tensors(lambda t: t.update({"model.extra.weight": ("BF16", (32,))})),
        "MODEL: 1 tensors have no place in mixtral; found model.extra.weight",
    ),
    "extra tensors, with long names": Case(
        tensors(lambda t: t.update({f"{n}{'x' * 500}": ("BF16", (32,)) for n in range(9)})),
        "MODEL: 9 tensors have no place in mixtral; found 0x*119, 1x*119, 2x*119, 3x*119",
    ),
    "missing tensor": Case(tensors(lambda t: t.pop(UP)), f"MODEL: tensor '{UP}' is missing"),
    "missing layer": Case(
        tensors(lambda t: [t.pop(n) for n in list(t) if ".layers.1." in n]),
        f"MODEL: the layers do not match {CONFIG} (num_hidden_layers); found 1 layers, expected 2, numbered "
        f"from 0; {OTHER_LAYERS}",
    ),
    "missing head": Case(
        tensors(lambda t: t.pop("lm_head.weight")),
        f"MODEL: tensor 'lm_head.weight' is missing; {CONFIG} says tie_word_embeddings = false",
    ),
    "no tensors": Case(
        tensors(dict.clear),
        f"MODEL: the layers do not match {CONFIG} (num_hidden_layers); found 0 layers, expected 2, numbered "
        f"from 0; {OTHER_LAYERS}",
    ),
    # another kind of model
    "fp8, with its config": Case(
        all_of(
            tensors(cast("F8_E4M3")),
            fields(quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}),
        ),
        f"MODEL: the model is quantised; found quantization_config with quant_method 'fp8', fmt 'e4m3'; {DEQUANTISE}",
    ),
    "fp8, without": Case(
        tensors(cast("F8_E4M3")),
        f"MODEL/{WEIGHTS}: tensor 'model.layers.0.self_attn.q_proj.weight' is quantised; found F8_E4M3, "
        f"expected F64, F32, F16, BF16; {DEQUANTISE}",
    ),
    "fp8, with scales": Case(
        all_of(tensors(cast("F8_E4M3")), tensors(linear(FP8, keep=True))),
        f"MODEL/{WEIGHTS}: tensor 'model.layers.0.self_attn.q_proj.weight' is quantised; found F8_E4M3, "
        f"expected F64, F32, F16, BF16; {DEQUANTISE}",
    ),
    "GPTQ": Case(
        all_of(tensors(linear(GPTQ)), fields(quantization_config={"quant_method": "gptq", "bits": 4})),
        f"MODEL: the model is quantised; found quantization_config with quant_method 'gptq', bits 4; {DEQUANTISE}",
    ),
    "GPTQ, without its config": Case(
        tensors(linear(GPTQ)),
        f"MODEL/{WEIGHTS}: tensor 'model.layers.0.self_attn.q_proj.weight' is quantised; found qweight in "
        f"I32, qzeros in I32, scales in F16, g_idx in I32; {DEQUANTISE}",
    ),
    "AWQ": Case(
        all_of(tensors(linear(AWQ)), fields(quantization_config={"quant_method": "awq", "bits": 4})),
        f"MODEL: the model is quantised; found quantization_config with quant_method 'awq', bits 4; {DEQUANTISE}",
    ),
    "AWQ, without its config": Case(
        tensors(linear(AWQ)),
        f"MODEL/{WEIGHTS}: tensor 'model.layers.0.self_attn.q_proj.weight' is quantised; found qweight in "
        f"I32, qzeros in I32, scales in F16; {DEQUANTISE}",
    ),
    "bitsandbytes, 4 bits": Case(
        all_of(
            tensors(linear(NF4)),
            fields(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ),
        "MODEL: the model is quantised; found quantization_config with quant_method 'bitsandbytes', "
        f"load_in_4bit True; {DEQUANTISE}",
    ),
    "bitsandbytes, 4 bits, without its config": Case(
        tensors(linear(NF4)),
        f"MODEL/{WEIGHTS}: tensor 'model.layers.0.self_attn.q_proj.weight' is quantised; found U8, expected "
        f"F64, F32, F16, BF16; {DEQUANTISE}",
    ),
    "bitsandbytes, 8 bits": Case(
        all_of(
            tensors(cast("I8")),
            tensors(linear(INT8, keep=True)),
            fields(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        ),
        "MODEL: the model is quantised; found quantization_config with quant_method 'bitsandbytes', "
        f"load_in_8bit True; {DEQUANTISE}",
    ),
    "bitsandbytes, 8 bits, without its config": Case(
        all_of(tensors(cast("I8")), tensors(linear(INT8, keep=True))),
        f"MODEL/{WEIGHTS}: tensor 'model.layers.0.self_attn.q_proj.weight' is quantised; found I8, expected "
        f"F64, F32, F16, BF16; {DEQUANTISE}",
    ),
    "compressed-tensors": Case(
        fields(compression_config={"quant_method": "compressed-tensors"}),
        f"MODEL: the model is quantised; found compression_config with quant_method 'compressed-tensors'; {DEQUANTISE}",
    ),
    "quantised, nobody knows how": Case(
        fields(quantization_config=EVIL),
        f"MODEL: the model is quantised; found quantization_config '\\x1b[2J\\x07\\nx*46; {DEQUANTISE}",
    ),
    "quantised, with a method that lies": Case(
        fields(quantization_config={"quant_method": EVIL, "bits": [4] * 9000}),
        "MODEL: the model is quantised; found quantization_config with quant_method '\\x1b[2J\\x07\\nx*46, "
        f"bits [4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4,; {DEQUANTISE}",
    ),
    "remote code": Case(
        fields(auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}),
        f"{DENSE_LIES}: auto_map = {{'AutoConfig': 'evil.Config', 'AutoModel': 'evil.Model'}}: the model "
        "needs code of its own",
    ),
    "custom model_type": Case(
        fields(model_type="strange"),
        "no mixture of experts is known for this model; found model_type 'strange', expected one of "
        f"{', '.join(DENSE)}",
    ),
    "custom model_type, long": Case(
        fields(model_type=EVIL),
        "no mixture of experts is known for this model; found model_type '\\x1b[2J\\x07\\nx*46, expected one "
        f"of {', '.join(DENSE)}",
    ),
    "custom architecture": Case(
        fields(architectures=["StrangeForCausalLM"]),
        "the checkpoint holds another kind of model; found ['StrangeForCausalLM'], expected LlamaForCausalLM",
    ),
    "custom architecture, long": Case(
        fields(architectures=[EVIL] * 99),
        "the checkpoint holds another kind of model; found ['\\x1b[2J\\x07\\nx*45, expected LlamaForCausalLM",
    ),
    "mixture already": Case(
        fields(num_local_experts=8), "the model is a mixture of experts already; found num_local_experts = 8, llama"
    ),
    "mixture already, with a count that lies": Case(
        fields(num_local_experts=EVIL, model_type=EVIL),
        "the model is a mixture of experts already; found num_local_experts = '\\x1b[2J\\x07\\nx*46, "
        "'\\x1b[2J\\x07\\nx*46",
    ),
}
"""Of a model in one file."""

SHARDED: dict[str, Case] = {
    "missing shard": Case(
        remove(SHARDS[1]), f"MODEL: shards are missing; found 2 of 3, expected {SHARDS[1]}; the download is incomplete"
    ),
    "missing shards": Case(
        remove(*SHARDS),
        f"MODEL: shards are missing; found 0 of 3, expected {SHARDS[0]}, {SHARDS[1]}, {SHARDS[2]}; the "
        "download is incomplete",
    ),
    "a broken shard": Case(
        size(SHARDS[2], -1), f"MODEL/{SHARDS[2]}: truncated; found 16575 bytes, expected 16576; download the file again"
    ),
    "LFS pointer, shard": Case(write(SHARDS[0], POINTER), f"MODEL/{SHARDS[0]}: {IS_POINTER}"),
    "LFS pointer, index": Case(write(INDEX, POINTER), f"MODEL/{INDEX}: {IS_POINTER}"),
    "link out, shard": Case(replaced(link, SHARDS[0]), f"MODEL/{SHARDS[0]}: {LINKED}"),
    "link out, index": Case(replaced(link, INDEX), f"MODEL/{INDEX}: {LINKED}"),
    "link to itself, shard": Case(
        replaced(loop, SHARDS[0]),
        f"MODEL: shards are missing; found 2 of 3, expected {SHARDS[0]}; the download is incomplete",
    ),
    "link to itself, index": Case(replaced(loop, INDEX), f"MODEL/{INDEX}: {NO_FILE}"),
    "pipe, shard": Case(replaced(pipe, SHARDS[0]), f"MODEL/{SHARDS[0]}: {NO_FILE}"),
    "directory, shard": Case(replaced(folder, SHARDS[0]), f"MODEL/{SHARDS[0]}: {NO_FILE}"),
    "index with ../": Case(
        places(lambda w: w.update({NORM: f"../{SHARDS[2]}"})),
        f"MODEL/{INDEX}: unsafe file name for tensor '{NORM}'; found '../{SHARDS[2]}', {FILE_NAME}",
    ),
    "index with an absolute path": Case(
        places(lambda w: w.update({NORM: f"/{SHARDS[2]}"})),
        f"MODEL/{INDEX}: unsafe file name for tensor '{NORM}'; found '/{SHARDS[2]}', {FILE_NAME}",
    ),
    "index with a drive": Case(
        places(lambda w: w.update({NORM: f"C:{SHARDS[2]}"})),
        f"MODEL/{INDEX}: unsafe file name for tensor '{NORM}'; found 'C:{SHARDS[2]}', {FILE_NAME}",
    ),
    "index with a backslash": Case(
        places(lambda w: w.update({NORM: f"..\\{SHARDS[2]}"})),
        f"MODEL/{INDEX}: unsafe file name for tensor '{NORM}'; found '..\\\\{SHARDS[2]}', {FILE_NAME}",
    ),
    "index with another suffix": Case(
        places(lambda w: w.update({NORM: "pytorch_model.bin"})),
        f"MODEL/{INDEX}: unsafe file name for tensor '{NORM}'; found 'pytorch_model.bin', {FILE_NAME}",
    ),
    "index with control characters": Case(
        places(lambda w: w.update({NORM: EVIL})),
        f"MODEL/{INDEX}: unsafe file name for tensor '{NORM}'; found '\\x1b[2J\\x07\\nx*106, {FILE_NAME}",
    ),
    "index with a number": Case(
        places(lambda w: w.update({NORM: 3})),
        f"MODEL/{INDEX}: unsafe file name for tensor '{NORM}'; found 3, {FILE_NAME}",
    ),
    "index with an unsafe name": Case(
        places(lambda w: w.update({"../x": SHARDS[2]})), f"MODEL/{INDEX}: unsafe tensor name; found '../x'"
    ),
    "index with many long names": Case(
        places(lambda w: w.update({f"{n}{'x' * 500}": SHARDS[2] for n in range(9)})),
        f"MODEL/{INDEX}: the index names tensors that the shard lacks; found {SHARDS[2]}, expected 0x*119, "
        "1x*119, 2x*119, 3x*119 and 5 more",
    ),
    "index with many missing shards": Case(
        places(lambda w: w.update({f"x.{n}": f"{n}{'x' * 9000}.safetensors" for n in range(9)})),
        f"MODEL/{INDEX}: unsafe file name for tensor 'x.0'; found '0x*118, {FILE_NAME}",
    ),
    "index that says too much": Case(
        places(lambda w: w.update({"model.extra.weight": SHARDS[2]})),
        f"MODEL/{INDEX}: the index names tensors that the shard lacks; found {SHARDS[2]}, expected model.extra.weight",
    ),
    "index that says too little": Case(
        places(lambda w: w.pop(NORM)),
        f"MODEL/{INDEX}: a shard holds tensors that the index does not place there; found {NORM} in {SHARDS[2]}",
    ),
    "index without a weight map": Case(write(INDEX, b"{}"), f"MODEL/{INDEX}: has no weight_map"),
    "duplicate key, index": Case(
        twice(INDEX, "weight_map"), f"MODEL/{INDEX}: not valid JSON (duplicate key 'weight_map')"
    ),
    "deep JSON, index": Case(nested(INDEX), f"MODEL/{INDEX}: not valid JSON (nested too deeply)"),
    "huge JSON, index": Case(
        size(INDEX, 100_000_000), f"MODEL/{INDEX}: JSON file too large; found 100001604 bytes, expected at most 32 MB"
    ),
    "invalid UTF-8, index": Case(
        write(INDEX, b'{"weight_map": {"\xff": "x"}}'), f"MODEL/{INDEX}: not valid JSON (byte 17 is not UTF-8)"
    ),
    "UTF-16, index": Case(
        recoded(INDEX, "utf-16"), f"MODEL/{INDEX}: not valid JSON (it is UTF-16, where UTF-8 is expected)"
    ),
    "byte order mark, index": Case(
        recoded(INDEX, "utf-8-sig"), f"MODEL/{INDEX}: not valid JSON (it begins with a byte order mark)"
    ),
    "the same tensor in two shards": Case(
        entries(lambda e: e.update({NORM: {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]}}), SHARDS[0]),
        f"MODEL: tensor '{NORM}' is in two shards; found {SHARDS[0]} and {SHARDS[2]}",
    ),
    "a single file beside the shards": Case(
        lambda m: shutil.copy(m / SHARDS[0], m / WEIGHTS),
        f"MODEL: both {WEIGHTS} and {INDEX} are there, and readers differ in which they load; remove the one "
        "that is stale",
    ),
}
"""Of a model in three shards: the embeddings and the head, layer 0, layer 1 and the last norm."""
