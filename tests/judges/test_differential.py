"""Our AlpacaEval path against `alpaca_eval.evaluate`, on one judge on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lora_eval.judges.answers import read_answers
from lora_eval.judges.own_rows import last_replies, preferences
from lora_eval.judges.run import run_plan
from tests.conftest import CHECKOUT
from tests.judges.judged import plan_of, write_answers
from tests.judges.stub import StubJudge

# alpaca_eval in a process of its own, with the stand-in for pkg_resources: it changes what it is imported
# into.
UPSTREAM = """
import json, sys
from lora_eval.judges import alpaca
with alpaca._contained():
    import alpaca_eval
    model, reference, config, out = sys.argv[1:]
    _, annotations = alpaca_eval.evaluate(
        model_outputs=json.load(open(model)), reference_outputs=json.load(open(reference)),
        annotators_config=config, is_return_instead_of_print=True, precomputed_leaderboard=None,
        caching_path=None, output_path=None, fn_metric="get_winrate", sort_by="win_rate",
        is_overwrite_leaderboard=True, metric_kwargs={},
    )
json.dump([[row["instruction"], row["preference"]] for row in annotations], open(out, "w"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "judge"),
    [
        ("weighted_alpaca_eval_gpt4_turbo", "alpaca-logprob"),
        ("weighted_alpaca_eval_gpt4_turbo", "alpaca_eval:weighted_alpaca_eval_gpt4_turbo"),
        ("alpaca_eval_gpt4_turbo_fn", "alpaca_eval:alpaca_eval_gpt4_turbo_fn"),
    ],
)
def test_preferences_equal_alpaca_evals(run_python, tmp_path: Path, config, judge):
    """30 pairs, one of them equal answers; the judge prefers the first; the order is alpaca_eval's draw."""
    pytest.importorskip("sklearn")
    generator = np.random.default_rng(0)
    files = write_answers(tmp_path, {arm: generator.normal(size=30).round(3) for arm in ("base", "tuned")})
    rows = {arm: json.loads(path.read_text("utf-8")) for arm, path in files.items()}
    rows["tuned"][4]["output"] = rows["base"][4]["output"]
    for arm, path in files.items():
        path.write_text(json.dumps([row | {"generator": arm} for row in rows[arm]]), "utf-8")
    with StubJudge(bias=0.4) as stub:
        (tmp_path / "client.yaml").write_text(
            f"default: [{{api_key: EMPTY, base_url: '{stub.url}'}}]", "utf-8"
        )
        environment = {
            "OPENAI_CLIENT_CONFIG_PATH": str(tmp_path / "client.yaml"),
            "PYTHONPATH": str(CHECKOUT),
        }
        out = tmp_path / "theirs.json"
        done = run_python("-c", UPSTREAM, files["tuned"], files["base"], config, out, env=environment)
        assert done.status == 0, done.stderr[-3000:]
        theirs_calls = stub.calls
        plan = plan_of(files, stub.url, judge, suite="alpaca-eval", orders="alpaca")
        ours = preferences(last_replies(run_plan(plan, tmp_path / "out", max_cost=None).verdicts))
        assert stub.calls - theirs_calls == theirs_calls == 29
        assert 5 < sum(call.first == "b" for call in plan.calls) < 25
    theirs = dict(json.loads(out.read_text("utf-8")))
    instructions = {key: question.turns[0] for key, question in read_answers(files)[0].questions.items()}
    assert len(ours) == 30
    for preference in ours:
        assert preference.value == pytest.approx(theirs[instructions[preference.prompt]], abs=1e-9)


def test_reports_import_neither_alpaca_eval_nor_a_client(run_python):
    heavy = ("alpaca_eval", "sklearn", "pandas", "httpx2", "torch")
    code = f"import lora_eval.judges.report, sys; print([name for name in {heavy} if name in sys.modules])"
    assert run_python("-c", code).stdout.strip() == "[]"
