"""A trained run, run by the C++ model."""
import torch


def _text(utf8):
    return bytes(utf8.tolist()).decode("utf-8", errors="replace")


class Model:
    """A run folder of `rmoe train` (or `rmoe import`) with its tokenizer, on the CPU.

    path: the run folder; checkpoint: "newest", "best" or a step; dtype, of the hidden states: "fp32" or "bf16".
    Errors are RuntimeErrors in one line that name the folder or file.
    """

    def __init__(self, path, checkpoint="newest", dtype="fp32"):
        import rmoe
        if not rmoe.ops_available:
            raise RuntimeError("rmoe.Model: needs librmoe.so, which is not there; `pip install .` or `make build`")
        self._model = torch.classes.rmoe.Model(str(path), str(checkpoint), dtype)
        self.vocab_size = self._model.vocab_size()
        #: Steps of training that the checkpoint has seen.
        self.step = self._model.step()
        #: Tokens of the longest text that the model was made for: those of a text in training, of an imported model its
        #: max_position_embeddings.
        self.context = self._model.context()
        separator = self._model.separator()
        #: The id that ends a document; None where documents are not separated.
        self.separator = None if separator < 0 else separator

    def encode(self, text):
        """Text to ids."""
        return self._model.encode(text)

    def decode(self, ids):
        """Ids to text; bytes that are no UTF-8 become U+FFFD."""
        return _text(self._model.decode(ids))

    def start_ids(self):
        """The ids that a text with nothing before it starts from."""
        return self._model.start_ids()

    def logits(self, tokens, valid=None):
        """tokens int64 [B, S], each row a text of its own; valid bool [B, S], False behind a row's end. One text may be
        [S], or the list that encode() returns. Returns the next token's logits at each position, fp32 [B, S, V] or
        [S, V], without gradients."""
        tokens = torch.as_tensor(tokens)
        if tokens.dim() == 1 and valid is None:
            return self._model.logits(tokens.unsqueeze(0), None).squeeze(0)
        return self._model.logits(tokens, valid)

    def generate(self, prompt, max_new=200, temperature=1.0, top_k=0, top_p=1.0, seed=1, stops=()):
        """The text that follows `prompt`, a text or the list of its ids: up to max_new tokens, until the separator (of
        an imported model, its ids of that kind) or the first of `stops`, which is left out. temperature 0 is greedy;
        keys and values are cached. Of a list of prompts, the list of texts, each what it is by itself; those of nearly
        equal length cost little more than one."""
        def is_one(x):
            return isinstance(x, str) or (len(x) > 0 and isinstance(x[0], int))

        def ids(x):
            return (self.encode(x) if isinstance(x, str) else list(x)) or self.start_ids()

        prompts = [prompt] if is_one(prompt) else prompt
        texts = self._model.generate([ids(x) for x in prompts], max_new, float(temperature), top_k, float(top_p), seed,
                                     list(stops))
        texts = [_text(text) for text in texts]
        return texts[0] if is_one(prompt) else texts
