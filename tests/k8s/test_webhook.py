"""The admission webhook: what it makes of pods, what it refuses, and that nothing in a review can make it fail."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
from typing import Any

import pytest
from aiohttp import ClientSession, web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orion_k8s import asks
from orion_k8s.webhook import admission
from orion_k8s.webhook.admission import TOKEN_FILE, TOKEN_FOLDER, TOKEN_VOLUME, Options
from orion_k8s.webhook.app import BODY_MAX_BYTES, Webhook

GPU = {"limits": {"virtaitech.com/gpu": "1"}}
BY_UID = {"name": "ORION_GROUP_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}
Object = dict[str, Any]


def pod(*containers: Object, annotations: Object | None = None, **spec: Any) -> Object:
    return {"metadata": {"name": "p", "namespace": "n", "annotations": annotations or {}},
            "spec": {"containers": list(containers), **spec}}  # fmt: skip


def container(name: str = "main", env: list[Object] | None = None, **more: Any) -> Object:
    made: Object = {"name": name, "resources": GPU, **more}
    return made if env is None else made | {"env": env}


def patched(before: Object, verdict: admission.Verdict) -> Object:
    """The pod after the patch, which only adds."""
    after = copy.deepcopy(before)
    for step in verdict.patch:
        assert step["op"] == "add"
        *parents, last = step["path"].lstrip("/").split("/")
        place: Any = after
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place[key]
        if isinstance(place, list):
            assert last == "-"
            place.append(step["value"])
        else:
            assert last not in place or not place[last]  # nothing that was there is lost
            place[last] = step["value"]
    return after


def mutated(before: Object, options: Options | None = None) -> Object:
    kept = copy.deepcopy(before)
    verdict = admission.mutate(before, options)
    assert not verdict.refusal, verdict.refusal
    return patched(kept, verdict)


def names(made: Object) -> list[str]:
    return [entry["name"] for entry in made["env"]]


def test_a_pod_that_asks_for_no_vgpu_is_left_as_it_is() -> None:
    for plain in (pod({"name": "a"}), pod({"name": "a", "resources": {"limits": {"cpu": "1"}}}), {}, {"spec": None}):
        verdict = admission.mutate(plain)
        assert not verdict.patch and not verdict.refusal and not verdict.warnings


def test_a_bare_pod_is_completed_and_then_valid() -> None:
    sidecar = {"name": "logs", "env": [{"name": "A", "value": "1"}]}
    after = mutated(pod(container(), sidecar))
    assert after["spec"]["schedulerName"] == "orion-scheduler"
    main, untouched = after["spec"]["containers"]
    assert untouched == sidecar
    assert BY_UID in main["env"] and {"name": "ORION_VGPU", "value": "1"} in main["env"]
    assert {"name": "ORION_TOKEN_FILE", "value": TOKEN_FILE} in main["env"]
    assert main["volumeMounts"] == [{"name": TOKEN_VOLUME, "mountPath": TOKEN_FOLDER, "readOnly": True}]
    (volume,) = after["spec"]["volumes"]
    (source,) = volume["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "orion"
    assert not admission.validate(after).refusal
    # A second round, as after another webhook's change, adds nothing.
    assert not admission.mutate(copy.deepcopy(after)).patch


def test_the_products_example_pod_keeps_what_it_says() -> None:
    env = [{"name": "ORION_VGPU", "value": "1"}, {"name": "ORION_GMEM", "value": "4096"},
           {"name": "ORION_RATIO", "value": "100"}, BY_UID]  # fmt: skip
    after = mutated(pod(container(env=env), schedulerName="orion-scheduler", hostIPC=True))
    main = after["spec"]["containers"][0]
    assert main["env"][:4] == env and len(set(names(main))) == len(names(main))
    assert after["spec"]["hostIPC"] is True


def test_annotations_become_environment_where_it_is_silent() -> None:
    sizes = {"virtaitech.com/gmem": "2048", "virtaitech.com/ratio": "30"}
    main = mutated(pod(container(), annotations=sizes))["spec"]["containers"][0]
    assert {"name": "ORION_GMEM", "value": "2048"} in main["env"]
    assert {"name": "ORION_RATIO", "value": "30"} in main["env"]
    told = admission.mutate(pod(container(env=[{"name": "ORION_GMEM", "value": "1024"}]), annotations=sizes))
    assert "ORION_GMEM is '1024' and the annotation virtaitech.com/gmem says 2048" in told.refusal and not told.patch


def test_another_schedulers_pod_is_let_through_with_a_warning() -> None:
    verdict = admission.mutate(pod(container(), schedulerName="other"))
    assert not any(step["path"] == "/spec/schedulerName" for step in verdict.patch)
    assert "schedulerName is other" in verdict.warnings[0]


def test_without_an_audience_there_is_no_token() -> None:
    after = mutated(pod(container()), Options(audience=""))
    assert "volumes" not in after["spec"] and "ORION_TOKEN_FILE" not in names(after["spec"]["containers"][0])


def test_init_containers_and_volumes_that_are_there() -> None:
    before = pod(container(volumeMounts=[{"name": "data", "mountPath": "/data"}]), initContainers=[container("first")],
                 volumes=[{"name": "data"}])  # fmt: skip
    after = mutated(before)
    assert [v["name"] for v in after["spec"]["volumes"]] == ["data", TOKEN_VOLUME]
    assert len(after["spec"]["containers"][0]["volumeMounts"]) == 2
    assert BY_UID in after["spec"]["initContainers"][0]["env"]


@pytest.mark.parametrize(("env", "annotations", "says"), [
    ([{"name": "ORION_GROUP_ID", "value": "somebody-elses"}], {}, "must be the pod's own uid"),
    ([{"name": "ORION_GROUP_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}], {}, "own uid"),
    ([{"name": "ORION_RATIO", "value": "101"}], {}, "ORION_RATIO (percent) is 101: 0 to 100"),
    ([{"name": "ORION_RATIO", "value": "abc"}], {}, "a whole number, not 'abc'"),
    ([{"name": "ORION_GMEM", "value": "-1"}], {}, "ORION_GMEM (MiB) is -1"),
    ([{"name": "ORION_GMEM", "valueFrom": {"configMapKeyRef": {}}}], {}, "must be a plain value"),
    ([{"name": "ORION_VGPU", "value": "2"}], {}, "ORION_VGPU is 2, and the limit of vGPUs is 1"),
    ([{"name": "ORION_SCHEDULE_RULE", "value": "random"}], {}, "local-first, binpack, spread"),
    ([], {"virtaitech.com/gmem": "much"}, "virtaitech.com/gmem"),
    ([], {"virtaitech.com/ratio": "0"}, "1 to 100"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_with_a_sentence(env: list[Object], annotations: Object, says: str) -> None:
    verdict = admission.mutate(pod(container(env=env), annotations=annotations))
    assert says in verdict.refusal and verdict.refusal.startswith("orion: ") and not verdict.patch


def test_a_group_that_another_webhook_took_away_is_missed_at_the_end() -> None:
    assert "ORION_GROUP_ID is missing" in admission.validate(pod(container())).refusal


def test_an_edit_may_only_say_sizes_that_can_be() -> None:
    assert not admission.validate_update(pod(container(), annotations={"virtaitech.com/ratio": "50"})).refusal
    assert admission.validate_update(pod(container(), annotations={"virtaitech.com/ratio": "500"})).refusal
    assert not admission.validate_update(pod({"name": "a"}, annotations={"virtaitech.com/ratio": "x"})).refusal


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["1", "virtaitech.com/gpu"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["name", "env", "value", "valueFrom", "fieldRef", "resources", "limits", "requests",
                         "virtaitech.com/gpu", "volumes", "volumeMounts", "mountPath", "x"]), inner, max_size=4),
    max_leaves=14,
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(JSON, max_size=3), JSON, JSON)
def test_whatever_a_pod_is_it_is_judged(containers: list[Any], volumes: Any, annotations: Any) -> None:
    strange = {"metadata": {"annotations": annotations}, "spec": {"containers": containers, "volumes": volumes}}
    # An API server lets none of these in; what comes is judged all the same.
    for judge in (admission.mutate, admission.validate, admission.validate_update):
        verdict = judge(copy.deepcopy(strange))
        assert not (verdict.refusal and verdict.patch)


# ---------------------------------------------------------------------------------------------------- over HTTP
def review(made: Any, operation: str = "CREATE", **more: Any) -> Object:
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "u-1", "kind": {"kind": "Pod"}, "operation": operation, "namespace": "n",
                        "object": made, **more}}  # fmt: skip


def ask(path: str, *bodies: bytes) -> list[tuple[int, Any]]:
    async def run() -> list[tuple[int, Any]]:
        app = web.Application(client_max_size=BODY_MAX_BYTES)
        app.add_routes(Webhook(None).routes())
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        told = []
        try:
            async with ClientSession() as session:
                for body in bodies:
                    async with session.post(f"http://127.0.0.1:{port}{path}", data=body) as answer:
                        text = await answer.text()
                        told.append((answer.status, json.loads(text) if answer.status == 200 else text))
        finally:
            await runner.cleanup()
        return told

    return asyncio.run(run())


def test_a_review_is_answered_with_a_patch_or_a_refusal() -> None:
    wrong = container(env=[{"name": "ORION_RATIO", "value": "101"}])
    made = [pod(container()), pod(wrong), pod({"name": "a"})]
    good, bad, plain = ask("/mutate", *(json.dumps(review(p)).encode() for p in made))
    assert good[0] == 200 and good[1]["response"]["uid"] == "u-1" and good[1]["response"]["allowed"] is True
    steps = json.loads(base64.b64decode(good[1]["response"]["patch"]))
    assert {"op": "add", "path": "/spec/schedulerName", "value": "orion-scheduler"} in steps
    assert bad[1]["response"]["allowed"] is False and "101" in bad[1]["response"]["status"]["message"]
    assert plain[1]["response"] == {"uid": "u-1", "allowed": True}


def test_updates_subresources_and_other_kinds_are_not_completed() -> None:
    edited = review(pod(container(), annotations={"virtaitech.com/gmem": "x"}), "UPDATE")
    status = review(pod(container()), "UPDATE", subResource="status")
    other = review(pod(container()), kind={"kind": "Deployment"})
    told = ask("/validate", *(json.dumps(r).encode() for r in (edited, status, other)))
    assert [answer["response"]["allowed"] for _, answer in told] == [False, True, True]


def test_what_is_no_review_is_400_and_the_next_one_is_answered() -> None:
    bodies = [b"", b"{", b"[]", b'{"request": 5}', b'{"request": {"uid": 5}}', b"[" * 100_000,
              b" " * (BODY_MAX_BYTES + 2), json.dumps(review(pod(container()))).encode()]  # fmt: skip
    told = ask("/mutate", *bodies)
    assert [status for status, _ in told] == [400] * 7 + [200]


def test_the_resources_name_is_a_setting() -> None:
    options = Options(resource="example.com/vgpu")
    assert admission.mutate(pod(container()), options).ask is None
    named = pod({"name": "m", "resources": {"limits": {"example.com/vgpu": "2"}}})
    verdict = admission.mutate(named, options)
    assert verdict.ask is not None and verdict.ask.vgpus == 2 and asks.RESOURCE == "virtaitech.com/gpu"


def test_containers_with_resource_claims_get_the_token_and_nothing_else() -> None:
    claims = {"claims": [{"name": "vgpu"}]}
    before = pod(container(resources=claims), container("side", resources={}),
                 resourceClaims=[{"name": "vgpu", "resourceClaimTemplateName": "small-vgpu"}])  # fmt: skip
    after = mutated(before)
    main, side = after["spec"]["containers"]
    assert main["env"] == [{"name": "ORION_TOKEN_FILE", "value": TOKEN_FILE}]
    assert main["volumeMounts"] == [{"name": TOKEN_VOLUME, "mountPath": TOKEN_FOLDER, "readOnly": True}]
    assert [volume["name"] for volume in after["spec"]["volumes"]] == [TOKEN_VOLUME]
    assert side == container("side", resources={}) and "schedulerName" not in after["spec"]
    assert mutated(after) == after  # and once only
    assert mutated(before, Options(audience="")) == before
    beside = mutated(pod(container(), container("claims", resources=claims)))
    assert all(any(m["mountPath"] == TOKEN_FOLDER for m in c["volumeMounts"]) for c in beside["spec"]["containers"])
    assert len(beside["spec"]["volumes"]) == 1
