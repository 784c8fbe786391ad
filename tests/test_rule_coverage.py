"""Gradient rules cover what they find or refuse it by name; nothing of the user's changes; what is asked for wrongly is said."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import jscope_tl as js
from jscope_tl.engine.ruled_pass import HeldConstant
from jscope_tl.engine.rules import RULES, Rules, to_rules
from jscope_tl.engine.under_rules import under_rules
from jscope_tl.model.loading import has_bridge
from jscope_tl.model.view import ModelView
from tests import models, oracles
from tests.models import TOKENS

NAMED = [name for name in RULES if name != "plain"]
needs_bridge = pytest.mark.skipif(not has_bridge(), reason="no TransformerBridge before 3.0")


class Norm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


class GatedNorm(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * functional.silu(x)


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        later = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        scores = (x @ x.mT.clone()).masked_fill(later, -torch.inf)
        return scores.softmax(-1) @ (2 * x)


class GatedAttention(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.sigmoid(x)


class QuotientAttention(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / (1 + x.square())


class IdentityActivation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class MLP(nn.Module):
    """What ``compute`` makes of it."""

    def __init__(self, compute: Any) -> None:
        super().__init__()
        self.compute = compute
        self.relu, self.silu_in_place = nn.ReLU(), nn.SiLU(inplace=True)
        self.identity_activation = IdentityActivation()

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def secants(x: Tensor, act: Any) -> Tensor:
    return x * (act(x) / x).detach()


class View(ModelView):
    """Of a module that is no model."""

    name = "this model"

    def __post_init__(self) -> None:
        pass


def through(module: nn.Module, rules: Rules, x: Tensor) -> Tensor:
    """The gradient of the sum of squares under the rules; the value is checked against the module's own."""
    model = nn.ModuleDict({"part": module})
    model.cfg = SimpleNamespace()
    with under_rules(View(model), rules, HeldConstant(), x.shape[1]):
        out = module(x)
    torch.testing.assert_close(out, module(x.detach()))
    return torch.autograd.grad(out.sum(), x)[0]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)).double().requires_grad_()


RIGHT = {
    "silu": (lambda m, x: functional.silu(x), lambda x: secants(x, functional.silu)),
    "relu squared": (lambda m, x: m.relu(x) ** 2, lambda x: secants(x, lambda g: g.relu() ** 2)),
    "relu times itself": (lambda m, x: (r := m.relu(x)) * r, lambda x: secants(x, lambda g: g.relu() ** 2)),
    "torch.square": (lambda m, x: torch.relu(x).square(), lambda x: secants(x, lambda g: g.relu() ** 2)),
    "gated": (lambda m, x: functional.gelu(x) * (3 * x), lambda x: 0.5 * secants(x, functional.gelu) * 3 * x.detach()
              + 0.5 * functional.gelu(x).detach() * 3 * x),
    "chunks": (lambda m, x: functional.silu((2 * x).chunk(2, -2)[0]) * (2 * x).chunk(2, -2)[1],
               lambda x: 0.5 * secants(2 * x[:, :3], functional.silu) * 2 * x[:, 3:].detach()
               + 0.5 * functional.silu(2 * x[:, :3]).detach() * 2 * x[:, 3:]),
    "by keyword": (lambda m, x: torch.mul(input=functional.silu(x), other=3 * x), lambda x: 0.5 * secants(x, functional.silu)
                   * 3 * x.detach() + 0.5 * functional.silu(x).detach() * 3 * x),
    "erf": (lambda m, x: torch.erf(x), lambda x: secants(x, torch.erf)),
    "relu in place": (lambda m, x: functional.relu(2 * x, inplace=True), lambda x: secants(2 * x, torch.relu)),
    "identity": (lambda m, x: m.identity_activation(x), lambda x: x),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_activations_and_gates_by_hand(x: Tensor, name: str) -> None:
    compute, formula = RIGHT[name]
    expected = torch.autograd.grad(formula(x).sum(), x)[0]
    torch.testing.assert_close(through(MLP(compute), Rules(mlp="secant"), x), expected)


REFUSED = {
    "sigmoid gate": (MLP(lambda m, x: torch.sigmoid(x) * x), "activations"),
    "quick gelu": (MLP(lambda m, x: x * torch.sigmoid(1.702 * x)), "activations"),
    "gelu by hand": (MLP(lambda m, x: 0.5 * x * (1 + torch.tanh(0.8 * x))), "products"),
    "gelu by erf": (MLP(lambda m, x: x * (1 + torch.erf(x))), "products"),
    "softmax": (MLP(lambda m, x: x.softmax(-1)), "activations"),
    "in place": (MLP(lambda m, x: m.silu_in_place(2 * x)), "activations"),
    "in place, by function": (MLP(lambda m, x: functional.silu(2 * x, inplace=True)), "activations"),
    "bilinear": (MLP(lambda m, x: m.relu(x) + x * (2 * x)), "products"),
    "addcmul": (MLP(lambda m, x: torch.addcmul(x, m.relu(x), 2 * x)), "products"),
    "hardtanh in place": (MLP(lambda m, x: functional.hardtanh(2 * x, inplace=True)), "activations"),
    "in place product": (MLP(lambda m, x: m.relu(x).mul_(2 * x)), "products"),
    "glu": (MLP(lambda m, x: functional.glu(torch.cat([x, x], -1))), "activations"),
    "no activation": (MLP(lambda m, x: 2 * x), "activations"),
    "gated attention": (GatedAttention(), "products"),
    "linear attention": (MLP(lambda m, x: m.relu(x) @ (x.mT.clone() @ x)), "products"),
    "quotients": (QuotientAttention(), "products"),
    "gated norm": (GatedNorm(), "products"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_by_name(x: Tensor, name: str) -> None:
    module, said = REFUSED[name]
    rules = Rules("constant", "halved" if isinstance(module, Attention) else "plain", "secant")
    if not isinstance(module, MLP):
        rules = Rules(rules.norm, "halved", "plain")
    with pytest.raises(js.InputError, match=f"part compute.* {said}"):
        through(module, rules, x)


def test_products_of_attention_by_any_name(x: Tensor) -> None:
    """Half for each factor, however the product is written."""
    scores = x.detach() @ x.detach().mT
    later = torch.ones(6, 6).triu(1).bool()
    P = scores.masked_fill(later, -torch.inf).softmax(-1)

    def formula(x: Tensor) -> Tensor:
        s = 0.5 * (x @ x.detach().mT + x.detach() @ x.mT)
        pattern = s.masked_fill(later, -torch.inf).softmax(-1)
        return 0.5 * (pattern @ (2 * x.detach()) + P @ (2 * x))

    expected = torch.autograd.grad(formula(x).sum(), x)[0]
    for contract in (
        torch.matmul, torch.bmm, lambda a, b: torch.matmul(input=a, other=b), lambda a, b: torch.einsum("bij,bjk->bik", a, b),
        lambda a, b: torch.einsum("bij,bjk->bik", [a, b]), lambda a, b: torch.baddbmm(torch.ones(1, 1, 1).double(), a, b),
        lambda a, b: torch.ones(1, 1, 1).double().baddbmm(batch1=a, batch2=b), lambda a, b: a.matmul(b),
    ):  # fmt: skip

        class OtherAttention(nn.Module):
            def forward(self, x: Tensor, contract: Any = contract) -> Tensor:
                scores = contract(x, x.mT.clone()).masked_fill(later, -torch.inf)
                return contract(scores.softmax(-1), 2 * x)

        torch.testing.assert_close(through(OtherAttention(), Rules(attn="halved"), x), expected)


@pytest.mark.parametrize("gradient", NAMED)
def test_nothing_of_the_users_changes(llama: Any, gradient: str) -> None:
    """Also where the model fails in the middle."""
    js.attribute(llama, TOKENS)  # TransformerLens puts hooks of its own at the first run
    before, attributes = models.snapshot(llama), {n: dict(vars(m)) for n, m in llama.named_modules()}

    def unchanged() -> bool:
        now = {name: vars(module) for name, module in llama.named_modules()}
        same = all(
            now[name][key] is value
            for name, kept in attributes.items()
            for key, value in kept.items()
            if callable(value)
        )
        return same and models.snapshot(llama) == before and all(now[n].keys() == attributes[n].keys() for n in now)

    js.attribute(llama, TOKENS, gradient=gradient, at="pattern")
    assert unchanged()

    def fails(value: Tensor, hook: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        js.attribute(llama, TOKENS, gradient=gradient, fwd_hooks=[("blocks.1.hook_resid_post", fails)])
    assert unchanged()


def test_another_thread_sees_no_rules(llama: Any) -> None:
    """A forward pass of the same model while one runs under rules has the derivative itself."""
    mlp = llama.blocks[0].mlp
    x = torch.randn(1, 2, models.D_MODEL, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found: dict[str, Tensor] = {}

    def differentiate(key: str) -> None:
        with torch.enable_grad():
            found[key] = torch.autograd.grad(mlp(x).sum(), x)[0]

    def aside(value: Tensor, hook: Any) -> None:
        if "beside" not in found:
            thread = threading.Thread(target=differentiate, args=["beside"])
            thread.start()
            thread.join()

    differentiate("before")
    js.attribute(llama, TOKENS, gradient="attnlrp", fwd_hooks=[("blocks.1.hook_resid_post", aside)])
    torch.testing.assert_close(found["beside"], found["before"], rtol=0, atol=0)


@needs_bridge
def test_a_linear_model() -> None:
    """Identities as activations, norms of a constant scale, attention that adds nothing: all rules say what the derivative says."""
    from transformers import GPT2LMHeadModel

    config = models.hf_config("gpt2")
    config.activation_function, config.layer_norm_epsilon, config._attn_implementation = "linear", 1e10, "eager"
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "ln_" in name and name.endswith("weight"):
                parameter.fill_(1e5)
            if "attn.c_proj.weight" in name:
                parameter.zero_()
    model = models.bridge_of(hf, "tiny-linear")
    along = torch.randn(models.D_MODEL, generator=torch.Generator().manual_seed(0))
    plain = js.jacobian(model, TOKENS, along).as_subclass(Tensor)
    assert plain[:, -1].norm() > 0.1
    for rules in RULES.values():
        under = js.jacobian(model, TOKENS, along, gradient=rules).as_subclass(Tensor)
        assert oracles.relative_difference(under, plain) < 1e-6


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (dict(gradient="lrp"), "no gradient rules 'lrp'. Did you mean 'attnlrp'"),
        (dict(gradient="relp", frozen="attn"), "frozen='attn' is the gradient rule attn=constant and cannot be combined with gradient='relp'.*Give one"),
        (dict(gradient=js.Rules(attn="halved"), frozen="norm"), "Give one of them"),
        (dict(frozen="atn"), "frozen is 'attn'.*got 'atn'"),
        (dict(per="layer"), "per='layer' separates layers or heads of attention patterns; it needs at='pattern'"),
        (dict(at="pattern", per="heads"), "per is 'layer', 'head', or None.*got 'heads'. Did you mean 'head'"),
        (dict(at="pattern", reduction="dot"), "at='pattern' takes neither reduction nor path"),
        (dict(at="pattern", path="line"), "at='pattern' takes neither reduction nor path"),
        (dict(at="pattern", scope="spectral"), "spectral needs one vector for each token.*Use at='hook_embed'"),
        (dict(at="patern"), "patern"),
        (dict(at=["pattern"]), "pattern"),
    ],
)  # fmt: skip
def test_what_is_asked_for_wrongly(llama: Any, how: dict[str, Any], says: str) -> None:
    before = models.snapshot(llama)
    with pytest.raises(js.InputError, match=says):
        js.attribute(llama, TOKENS, **how)
    assert models.snapshot(llama) == before


@pytest.mark.parametrize("kind", ["norm", "attn", "mlp"])
def test_rules_of_other_names(kind: str) -> None:
    with pytest.raises(js.InputError, match=f"no rule {kind}='constnt'.*Known: plain"):
        js.Rules(**{kind: "constnt"})


@pytest.mark.parametrize("given", [7, ["attnlrp"], {"norm": "constant"}])
def test_rules_that_are_no_name(given: Any) -> None:
    with pytest.raises(js.InputError, match=r"no gradient rules .*Known: plain, attnlrp, relp, gim, and js\.Rules"):
        to_rules(given)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, **how: js.jacobian(model, TOKENS, torch.ones(models.D_MODEL), **how),
        lambda model, **how: js.spectrum(model, TOKENS, **how),
        lambda model, **how: js.patching.compare(model, TOKENS, TOKENS.flip(0), **how),
        lambda model, **how: js.patching.side_by_side(
            model, TOKENS, TOKENS.flip(0), "blocks.1.hook_resid_pre", [3], **how
        ),
        lambda model, **how: js.diagnostics.linearity(model, TOKENS, **how),
    ],
    ids=["jacobian", "spectrum", "compare", "side_by_side", "linearity"],
)
def test_entry_points_that_move_hook_points_only(llama: Any, call: Any) -> None:
    with pytest.raises(
        js.InputError, match="at='pattern' is taken by js.attribute, js.attribute_batch and js.influence_pattern"
    ):
        call(llama, at="pattern")


def test_frozen_is_a_name_for_rules(llama: Any) -> None:
    assert (
        to_rules(frozen=("norm", "attn"))
        == Rules("constant", "constant")
        == to_rules(gradient=Rules("constant", "constant"))
    )
    assert to_rules(None) == to_rules("plain") == Rules()
    result = js.attribute(llama, TOKENS, gradient=Rules(norm="constant"))
    assert (result.options["frozen"], "gradient" in result.options) == (["norm"], False)
