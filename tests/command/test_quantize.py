"""``companion quantize``: a smaller copy that writes, and requests that cannot be carried out."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from companion.command import main
from companion.efficiency.quantization import load_quantized
from companion.models import TextDecoder, load_pretrained, save_pretrained
from companion.transformer.block import Decoder, TransformerConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    words = ["<end>", *"abcdefghij"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = TransformerConfig(
        vocab=11, dim=64, layers=1, heads=4, ff_dim=96, context=16, norm="rms",
        activation="swiglu", attention_bias=False, ff_bias=False, tied=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Decoder(config).eval()
    path = tmp_path_factory.mktemp("models") / "whole"
    save_pretrained(TextDecoder(model, tokenizer, start=0, stop=(0,)), path)
    return path


@pytest.mark.parametrize(("bits", "method"), [(4, "nearest"), (4, "gptq"), (3, "nearest")])
def test_a_copy_of_few_bits_is_written_and_writes(folder, bits, method, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("a b c d e f g h i j " * 20, encoding="utf-8")
    out = tmp_path / "small"
    words = ["quantize", str(folder), "--bits", str(bits), "--out", str(out), "--method", method]
    assert main([*words, "--text", str(text)]) == 0
    assert "MB in memory" in capsys.readouterr().out
    small, whole = load_quantized(out), load_pretrained(folder)
    ids = torch.tensor([[1, 2, 3]])
    change = (small.model(ids) - whole.model(ids)).norm() / whole.model(ids).norm()
    assert 0 < float(change.detach()) < 0.5
    assert main(["generate", str(out), "--prompt", "a b", "--tokens", "3", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("a b")
    assert main(["quantize", str(out), "--out", str(tmp_path / "again")]) == 2
    assert "holds integers already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "gptq"], "give --text"),
        (["--bits", "4", "--group", "48"], "group must divide the 64 inputs"),
        (["--group", "0"], "--group must be 1 or more"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(folder, more, said, tmp_path, capsys):
    assert main(["quantize", str(folder), "--out", str(tmp_path / "x"), *more]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_folders_that_will_not_do_are_refused(folder, tmp_path, capsys):
    assert main(["quantize", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "holds no model" in capsys.readouterr().err
    assert main(["quantize", str(folder), "--out", str(folder)]) == 2
    assert "--out is the folder of the model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["quantize", str(folder), "--out", "x", "--bits", "5"])
    assert "--bits" in capsys.readouterr().err
