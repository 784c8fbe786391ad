"""The pocket model's word-level tokenizer: lower-case words with their leading space, punctuation as words, BOS first."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from jscope_tl.pocket.words import LEXICON, PUNCTUATION

BOS, EOS, PAD, UNK = "<bos>", "<eos>", "<pad>", "<unk>"
SPECIAL = (BOS, EOS, PAD, UNK)


def build_tokenizer() -> Tokenizer:
    """A `tokenizers.Tokenizer` over the pocket lexicon; ``29,30`` and ``29 , 30`` give the same tokens."""
    words = [*SPECIAL, *(f" {word}" for word in LEXICON)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            *(normalizers.Replace(mark, f" {mark} ") for mark in PUNCTUATION),
            normalizers.Strip(),
            normalizers.Prepend(" "),
            normalizers.Replace(Regex(r"\s+"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, SPECIAL.index(BOS))]
    )
    return tokenizer
