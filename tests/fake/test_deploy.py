"""What is deployed speaks of metrics that there are, and its tools find nothing in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memcg_oom import __version__
from memcg_oom.command import _parser as parser
from memcg_oom.command.export import LISTEN
from memcg_oom.command.health import Health
from memcg_oom.command.series import KINDS, LABELS, Series
from tools.draw_dashboard import Shown

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "memcg_oom.rules.yml"
DASHBOARD = DEPLOY / "grafana" / "memcg_oom.json"
OF_PROMETHEUS = {"up"}
# Of the labels, those that Prometheus gives.
GIVEN = {"instance", "job"}


@pytest.fixture(scope="module")
def metrics() -> dict[str, set[str]]:
    """The names of the samples that the exporter has, with their labels."""
    pytest.importorskip("prometheus_client", reason="metrics need prometheus_client")
    from memcg_oom.command.metrics import Metrics

    series = Series(keep=1.0, limit=10, say=print)
    families = list(Metrics(series, Health(), KINDS).collect())
    names: dict[str, set[str]] = {}
    for family in families:
        suffix = "_total" if family.type == "counter" else ""
        labels = {name for sample in family.samples for name in sample.labels}
        names[f"{family.name}{suffix}"] = labels or {"what"} & {family.name.removeprefix("memcg_degraded") or "what"}
    return names


def queries() -> Iterator[str]:
    """All of the dashboard's, with its variables filled in."""
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "75s")
            yield query.replace("$__range", "6h")


def expressions() -> Iterator[str]:
    """All of the alerts'."""
    lines = RULES.read_text().splitlines()
    for number, line in enumerate(lines):
        found = re.match(r"( +)expr: (.*)", line)
        if found and found[2] == ">-":
            rest = lines[number + 1 :]
            yield " ".join(
                one.strip()
                for one in rest[: next(i for i, one in enumerate(rest) if not one.startswith(f"{found[1]}  "))]
            )
        elif found:
            yield found[2]


@pytest.mark.parametrize("source", [queries, expressions], ids=["dashboard", "alerts"])
def test_they_are_about_metrics_that_there_are(metrics: dict[str, set[str]], source: Any) -> None:
    found = set()
    for query in source():
        names = set(re.findall(r"\b(?:memcg_\w+|up)\b", query))
        assert names, query
        assert names <= metrics.keys() | OF_PROMETHEUS, query
        found |= names
        known = set().union(*(metrics.get(name, set()) for name in names)) | GIVEN
        # label_replace() makes one of another, label_join() of two.
        for made, first, second in re.findall(r', "(\w+)", "[^"]*", "(\w+)", "([^"]*)"\)', query):
            assert {first, second if second in known else first} <= known, query
            known.add(made)
        for labels in re.findall(r"by \(([^)]*)\)", query):
            assert set(labels.replace(" ", "").split(",")) <= known, query
    assert "memcg_events_oom_kill_total" in found


def test_labels_in_the_alerts_words(metrics: dict[str, set[str]]) -> None:
    used = set(re.findall(r"\$labels\.(\w+)", RULES.read_text()))
    assert used <= set(LABELS) | GIVEN | {"what"}


def test_the_dashboards_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


class Drawn(Shown):
    """What would be asked of a Prometheus, which has nothing."""

    def __init__(self) -> None:
        super().__init__("", 1_000_000.0, 21_600.0, 15)
        self.asked: list[dict[str, object]] = []

    def _ask(self, what: str, **parameters: object) -> Any:
        self.asked.append(parameters)
        return []


def test_the_dashboards_picture_has_all_of_it() -> None:
    drawn = Drawn()
    dashboard = json.loads(DASHBOARD.read_text())
    page = drawn.page(dashboard)
    assert all(panel["title"] in page for panel in dashboard["panels"])
    assert len(drawn.asked) == len(list(queries()))
    assert not [asked for asked in drawn.asked if re.search(r"\$[a-z_{]", str(asked["query"]))]
    assert any("[75s]" in str(asked["query"]) and asked.get("step") == 60 for asked in drawn.asked)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("type", "heatmap"),
        ("transformations", [{"id": "groupBy", "options": {}}]),
        ("targets", [{"expr": "up[$__rate_of_change]", "datasource": {"uid": "${datasource}"}}]),
        ("targets", [{"expr": "up{job=~'${job}'}", "datasource": {"uid": "${datasource}"}}]),
        ("targets", [{"expr": "up", "datasource": {"uid": "another"}}]),
    ],
)
def test_nothing_of_the_dashboard_is_left_out_of_its_picture(key: str, value: object) -> None:
    panel = json.loads(DASHBOARD.read_text())["panels"][0]
    with pytest.raises(SystemExit, match=panel["title"]):
        Drawn().answers({**panel, key: value})


def promtool(*arguments: object, stdin: str | None = None) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("missing: apt-get install --no-install-recommends prometheus (for promtool)")
    done = subprocess.run(
        ["promtool", *map(str, arguments)], input=stdin, check=False, capture_output=True, text=True, cwd=RULES.parent
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_nothing_in_the_alerts() -> None:
    promtool("check", "rules", RULES)


def test_the_alerts_come_when_they_should() -> None:
    promtool("test", "rules", RULES.with_name("memcg_oom.rules.test.yml"))


def test_promtool_finds_nothing_in_the_dashboards_queries(tmp_path: Path) -> None:
    rules = [{"record": f"dashboard:query{number}", "expr": query} for number, query in enumerate(queries())]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    promtool("check", "rules", file)


# -- Kubernetes

KUBERNETES = DEPLOY / "kubernetes"
CONTAINERFILE = DEPLOY / "container" / "Containerfile"


def manifests() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="manifests are read with PyYAML")
    return list(yaml.safe_load_all((KUBERNETES / "memcg-oom.yaml").read_text()))


def daemon_set() -> dict[str, Any]:
    (found,) = [one for one in manifests() if one["kind"] == "DaemonSet"]
    return found


@pytest.mark.parametrize("version", ["1.25", "latest"])
def test_kubernetes_knows_all_of_it(version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="manifests are checked with kubernetes-validate")
    for manifest in manifests():
        validator.validate(manifest, validator.latest_version() if version == "latest" else version, strict=True)


def test_kubernetes_knows_the_patch_as_well() -> None:
    """As the API server would merge it: lists by their keys."""
    yaml = pytest.importorskip("yaml", reason="manifests are read with PyYAML")
    validator = pytest.importorskip("kubernetes_validate", reason="manifests are checked with kubernetes-validate")
    whole, patch = daemon_set(), yaml.safe_load((KUBERNETES / "kernel-log.yaml").read_text())
    pod, more = whole["spec"]["template"]["spec"], patch["spec"]["template"]["spec"]
    (container,), (added,) = pod["containers"], more["containers"]
    assert added["name"] == container["name"]
    pod["hostPID"] = more["hostPID"]
    pod["volumes"] += more["volumes"]
    container["securityContext"] |= added["securityContext"]
    # Else the API server would refuse it, which no schema says.
    assert container["securityContext"]["privileged"]
    assert container["securityContext"]["allowPrivilegeEscalation"]
    container["volumeMounts"] += added["volumeMounts"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    validator.validate(whole, validator.latest_version(), strict=True)


def test_the_daemon_set_calls_a_command_that_there_is() -> None:
    (container,) = daemon_set()["spec"]["template"]["spec"]["containers"]
    arguments = parser().parse_args(container["args"])
    (port,) = container["ports"]
    assert arguments.listen == ("0.0.0.0", port["containerPort"])  # noqa: S104 - who reaches it the policy says
    assert arguments.listen[1] == LISTEN[1]
    for probe in ("livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    (policy,) = [one for one in manifests() if one["kind"] == "NetworkPolicy"]
    assert policy["spec"]["ingress"][0]["ports"] == [{"port": LISTEN[1]}]


def test_the_image_has_a_python_that_the_package_is_for() -> None:
    project = DEPLOY.parent / "pyproject.toml"
    if not project.exists():
        pytest.skip("the tests were copied without the project")
    wanted = re.search(r'^requires-python = ">=3\.(\d+)"$', project.read_text(), re.MULTILINE)
    base = re.search(r"^ARG BASE=\S+/python:3\.(\d+)-slim$", CONTAINERFILE.read_text(), re.MULTILINE)
    assert wanted is not None
    assert base is not None
    assert int(base[1]) >= int(wanted[1])


def test_the_image_is_built_from_all_that_the_package_is_built_from() -> None:
    project = DEPLOY.parent / "pyproject.toml"
    if not project.exists():
        pytest.skip("the tests were copied without the project")
    data = project.read_text().partition("[tool.setuptools.data-files]\n")[2].partition("[")[2].partition("\n\n")[0]
    folders = set(re.findall(r'"(\w+)/[^"]*"\]', data))
    assert folders
    copied = re.findall(r"^COPY (?!--)(.*) /src", CONTAINERFILE.read_text(), re.MULTILINE)
    assert {"csrc", "memcg_oom", "pyproject.toml", "setup.py", *folders} <= set(" ".join(copied).split())


def test_the_image_is_of_this_version_and_runs_the_command() -> None:
    (container,) = daemon_set()["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"memcg-oom:{__version__}"
    text = CONTAINERFILE.read_text()
    assert f"/{container['image']} " in text
    assert f"-m venv --without-pip {(prefix := '/opt/memcg-oom')}" in text
    assert f"ENV PATH={prefix}/bin:$PATH" in text
    assert 'ENTRYPOINT ["memcg-oom"]' in text
    assert '"/src[prometheus]"' in text  # with what export needs
