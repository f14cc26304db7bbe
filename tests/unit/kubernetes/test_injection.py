"""The pure function: pods that cannot have a sidecar, and pods that nobody would write."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.kubernetes import names
from sidecar.kubernetes.injection import InjectionRefused, InjectionSettings, inject, wanted
from sidecar.kubernetes.versions import settings_for

SETTINGS = InjectionSettings()
PLAIN = replace(SETTINGS, native=False)
HTTP = {"name": "http", "containerPort": 8080}


def pod(annotations: dict[str, Any] | None = None, ports: Any = (HTTP,), **spec: Any) -> dict[str, Any]:
    container = {"name": "api", "image": "api:1", "ports": [dict(port) for port in ports]}
    return {
        "metadata": {
            "name": "p",
            "annotations": {names.PREFIX + key: value for key, value in (annotations or {}).items()},
        },
        "spec": {"containers": [container], **spec},
    }


def refusal(of: Any, usual: InjectionSettings = SETTINGS, *, job: bool = False) -> str:
    with pytest.raises(InjectionRefused) as caught:
        inject(of, usual, job=job)
    return str(caught.value)


SECOND = {"name": "admin", "containerPort": 8081}
REDIRECT = {"mode": "redirect"}
REFUSED: dict[str, tuple[Any, str]] = {
    "the node's network": (pod(hostNetwork=True), "hostNetwork is true"),
    "Windows": (pod(os={"name": "windows"}), "the pod is for Windows"),
    "no container": (pod() | {"spec": {"containers": []}}, "spec.containers names no container"),
    "no port": (pod(ports=()), "no container declares a TCP port"),
    "only a UDP port": (pod(ports=({**HTTP, "protocol": "UDP"},)), "no container declares a TCP port"),
    "several ports": (
        pod(ports=({**HTTP, "name": "web"}, SECOND)),
        "several ports could be the API: web (8080, container api), admin (8081, container api)",
    ),
    "a port without a name": (pod(ports=({"containerPort": 8080},)), "port 8080 of container api has no name"),
    "a port that is not there": (pod({"ports": "grpc"}), "there is no TCP port 'grpc'; declared are http (8080"),
    "a number that is not declared": (pod({"ports": "9999"}), "there is no TCP port '9999'"),
    "a number that is no port": (pod({"ports": "99999"}), "99999 is not a port"),
    "one port twice": (pod({"ports": "http,8080"}), "names a port twice"),
    "one word twice": (pod({"ports": "http,http"}), "names something twice"),
    "no word": (pod({"ports": " , "}), "ports names nothing"),
    "too many ports": (
        pod({"ports": ",".join(map(str, range(1, 18))), **REDIRECT}),
        "names 17 ports; at most 16 are possible",
    ),
    "all ports by name": (pod({"ports": "*"}), "* stands for all ports, alone, and in redirect mode only"),
    "all ports and one": (pod({"ports": "*,http", **REDIRECT}), "* stands for all ports, alone"),
    "a port of the sidecar": (pod(ports=({"name": "http", "containerPort": 15701},)), "one of the sidecar's own ports"),
    "redirecting one of them": (pod({"ports": "15720", **REDIRECT}), "15720 is one of the sidecar's own ports"),
    "a port excluded and served": (
        pod({"exclude-ports": "8080", **REDIRECT}),
        "exclude-ports: 8080 is also one of the API's ports",
    ),
    "excluded ports by name": (pod({"exclude-ports": "9090"}), "exclude-ports has a meaning in redirect mode only"),
    "everything excluded": (pod({"exclude-ports": "*", **REDIRECT}), "would serve no port"),
    "a port of that name twice": (
        {"metadata": {}, "spec": {"containers": [{"name": n, "ports": [HTTP]} for n in "ab"]}},
        "several ports could be",
    ),
    "an unknown annotation": (
        pod({"prots": "http"}),
        "quota.openova.io/prots is not known; did you mean quota.openova.io/ports?",
    ),
    "an unknown mode": (pod({"mode": "sidecar"}), "mode should be named-port or redirect, not 'sidecar'"),
    "an annotation that is no text": (pod({"drain-seconds": 5}), "should be text (in quotes), not 5"),
    "a quantity that is none": (pod({"cpu-request": "lots"}), "cpu-request should be a quantity like 100m or 128Mi"),
    "no processor at all": (pod({"cpu-request": "0"}), "cpu-request should be a quantity"),
    "more asked than allowed": (
        pod({"memory-request": "1Gi", "memory-limit": "512Mi"}),
        "memory request of 1Gi is above its limit of 512Mi",
    ),
    "an image that is none": (pod({"image": "a b"}), "image should be the name of an image"),
    "a ConfigMap that is none": (pod({"config": "Not/OK"}), "config should be the name of a ConfigMap"),
    "a path that is none": (pod({"exclude-paths": "/a//b"}), "exclude-paths: '/a//b' has the segment ''"),
    "a drain that takes too long": (pod({"drain-seconds": "301"}), "drain-seconds should be a whole number up to 300"),
    "a flag that is none": (pod({"metrics": "yes"}), "metrics should be true or false, not 'yes'"),
    "a volume of that name": (pod(volumes=[{"name": names.STATE_VOLUME}]), "a volume quota-sidecar-state already"),
    "a container of that name": (
        {"metadata": {}, "spec": {"containers": [{"name": names.CONTAINER}]}},
        "which was not injected",
    ),
    "an init container of that name": (
        pod(REDIRECT, initContainers=[{"name": names.REDIRECT_CONTAINER}]),
        "quota-sidecar-redirect which was not injected",
    ),
    "a mark without a sidecar": (pod({"status": "{}"}), "says that the pod has a sidecar, but it has none"),
    "a probe of a port that is not there": (
        pod(REDIRECT)
        | {"spec": {"containers": [{"name": "api", "ports": [HTTP], "readinessProbe": {"httpGet": {"port": "x"}}}]}},
        "spec.containers[0].readinessProbe.httpGet.port: the container declares no port 'x'",
    ),
    "containers that are none": ({"spec": {"containers": "api"}}, "spec.containers should be a list, not 'api'"),
    "a container that is none": ({"spec": {"containers": [1]}}, "spec.containers[0] should be a mapping, not 1"),
    "a container without a name": (
        {"spec": {"containers": [{}]}},
        "spec.containers[0].name should be text, not nothing",
    ),
    "a port that is text": (
        pod(ports=({"containerPort": "80"},)),
        "ports[0].containerPort should be a port from 1 to 65535",
    ),
}


@pytest.mark.parametrize(("of", "words"), REFUSED.values(), ids=REFUSED)
def test_a_pod_that_cannot_have_a_sidecar_is_refused_with_the_reason(of: Any, words: str) -> None:
    assert words in refusal(of)


@pytest.mark.parametrize("how", ["a job", "Never", "OnFailure"])
def test_what_is_to_end_by_itself_needs_a_native_sidecar(how: str) -> None:
    of = pod() if how == "a job" else pod(restartPolicy=how)
    assert "a sidecar that is a plain container would keep it running" in refusal(of, PLAIN, job=how == "a job")
    assert inject(of, SETTINGS, job=how == "a job").changed


def test_where_services_do_not_find_ports_of_native_sidecars_only_who_needs_no_service_has_one() -> None:
    def is_native(of: Any, version: tuple[int, int], *, job: bool = False) -> bool:
        spec = inject(of, settings_for(SETTINGS, version), job=job).pod["spec"]
        return any(each["name"] == names.CONTAINER for each in spec.get("initContainers", []))

    assert [is_native(pod(), (1, minor)) for minor in (28, 29, 32, 33)] == [False, False, False, True]
    assert [is_native(pod(REDIRECT), (1, minor)) for minor in (28, 29, 32, 33)] == [False, True, True, True]
    assert is_native(pod(), (1, 29), job=True)
    assert is_native(pod(restartPolicy="Never"), (1, 29))


def test_a_native_sidecar_whose_port_no_service_finds_can_be_had_and_is_warned_of() -> None:
    wanted_so = pod({"native": "true"})
    assert any("have no endpoint" in each for each in inject(wanted_so, settings_for(SETTINGS, (1, 32))).warnings)
    assert not any("endpoint" in each for each in inject(wanted_so, settings_for(SETTINGS, (1, 33))).warnings)


def test_a_native_sidecar_is_the_last_to_start_before_the_application_and_a_plain_one_stands_beside_it() -> None:
    mesh = {"name": "istio-proxy", "restartPolicy": "Always"}
    native = inject(pod(REDIRECT, initContainers=[mesh]), SETTINGS).pod["spec"]
    assert [each["name"] for each in native["initContainers"]] == [
        "istio-proxy", names.REDIRECT_CONTAINER, names.CONTAINER,
    ]  # fmt: skip
    assert native["initContainers"][-1]["restartPolicy"] == "Always"
    plain = inject(pod(REDIRECT), PLAIN).pod["spec"]
    assert [each["name"] for each in plain["initContainers"]] == [names.REDIRECT_CONTAINER]
    assert [each["name"] for each in plain["containers"]] == ["api", names.CONTAINER]
    assert "restartPolicy" not in plain["containers"][-1]


def test_only_the_redirecting_step_may_touch_the_network_and_nothing_else_may_anything() -> None:
    containers = inject(pod(REDIRECT), SETTINGS).pod["spec"]["initContainers"]
    for each in containers:
        context = each["securityContext"]
        assert context["capabilities"]["drop"] == ["ALL"]
        assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    redirect, sidecar = (each["securityContext"] for each in containers)
    assert redirect["capabilities"]["add"] == ["NET_ADMIN"]
    assert "add" not in sidecar["capabilities"]
    assert (sidecar["runAsNonRoot"], sidecar["runAsUser"]) == (True, names.USER_ID)


def test_a_port_that_is_excluded_is_not_taken_for_the_api() -> None:
    ports = ({"containerPort": 8080}, {"containerPort": 9000})
    injected = inject(pod({"exclude-ports": "9000", **REDIRECT}, ports=ports), SETTINGS).pod
    redirecting = next(each for each in injected["spec"]["initContainers"] if each["args"][0] == "redirect")
    assert "8080" in redirecting["args"]
    assert "several ports could be" in refusal(pod({"exclude-ports": "9001", **REDIRECT}, ports=ports))


def test_what_is_injected_has_no_token_of_the_applications_service_account() -> None:
    """The API server mounts it into every container that has nothing at that path."""
    spec = inject(pod(REDIRECT), SETTINGS).pod["spec"]
    for each in spec["initContainers"]:
        (mount,) = (mount for mount in each["volumeMounts"] if mount["mountPath"] == names.SERVICE_ACCOUNT_PATH)
        assert {"name": mount["name"], "emptyDir": {}} in spec["volumes"]
    assert not any(
        mount["mountPath"] == names.SERVICE_ACCOUNT_PATH for mount in spec["containers"][0].get("volumeMounts", ())
    )


def test_a_drain_fits_into_what_the_pod_has_to_end() -> None:
    def of(grace_s: int | None) -> tuple[str, tuple[str, ...]]:
        spec = {} if grace_s is None else {"terminationGracePeriodSeconds": grace_s}
        made = inject(pod(**spec), SETTINGS)
        env = {each["name"]: each.get("value") for each in made.pod["spec"]["initContainers"][-1]["env"]}
        return env["SIDECAR_LIMITS__DRAIN_TIMEOUT_MS"], made.warnings

    assert of(None) == of(30) == ("20000", ())
    assert of(120)[0] == "110000"
    shortest, warnings = of(5)
    assert shortest == "1000"
    assert "terminationGracePeriodSeconds is 5: too short" in warnings[0]


@pytest.mark.parametrize(
    ("labels", "annotations", "namespace", "expected"),
    [
        ({}, {}, {}, False),
        ({}, {}, {names.INJECT: "true"}, True),
        ({names.INJECT: "false"}, {}, {names.INJECT: "true"}, False),
        ({names.INJECT: "true"}, {}, {}, True),
        ({}, {names.INJECT: "true"}, {names.INJECT: "false"}, True),
        ({}, {}, {names.INJECT: "false"}, False),
    ],
)
def test_what_a_pod_says_itself_counts_before_its_namespace(
    labels: dict[str, str], annotations: dict[str, str], namespace: dict[str, str], expected: bool
) -> None:
    assert wanted({"labels": labels, "annotations": annotations}, namespace) is expected


def test_an_option_that_is_neither_yes_nor_no_is_refused() -> None:
    with pytest.raises(InjectionRefused, match='should be "true" or "false", not \'yes\''):
        wanted({"labels": {names.INJECT: "yes"}}, {})
    with pytest.raises(InjectionRefused, match="say different things"):
        wanted({"labels": {names.INJECT: "true"}, "annotations": {names.INJECT: "false"}}, {})


# Pods that nobody would write

RUBBISH = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.floats(allow_nan=False))
ANYTHING = st.recursive(
    RUBBISH,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
FULL = {
    "metadata": {"labels": {"app": "a"}, "annotations": {names.MODE: "redirect", names.PORTS: "http"}},
    "spec": {
        "terminationGracePeriodSeconds": 30,
        "os": {"name": "linux"},
        "volumes": [{"name": "data"}],
        "initContainers": [{"name": "first", "restartPolicy": "Always", "readinessProbe": {"tcpSocket": {"port": 1}}}],
        "containers": [
            {
                "name": "api",
                "ports": [HTTP, {"containerPort": 53, "protocol": "UDP"}],
                "livenessProbe": {
                    "httpGet": {"port": "http", "httpHeaders": [{"name": "A", "value": "b"}]},
                    "timeoutSeconds": 3,
                },
                "readinessProbe": {"grpc": {"port": 8080, "service": "s"}},
                "lifecycle": {"preStop": {"httpGet": {"port": 8080, "path": "/x"}}},
            }
        ],
    },
}


def paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [above, *(path for key, each in below for path in paths(each, (*above, key)))]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(paths(FULL)[1:]), ANYTHING, st.sampled_from(["redirect", "named-port"]))
def test_a_mangled_pod_is_injected_or_refused_and_nothing_else(path: tuple[Any, ...], value: Any, mode: str) -> None:
    mangled = copy.deepcopy(FULL)
    mangled["metadata"]["annotations"][names.MODE] = mode  # type: ignore[index]
    at: Any = mangled
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    before = copy.deepcopy(mangled)
    try:
        made = inject(mangled, SETTINGS)
    except InjectionRefused:
        pass
    else:
        again = inject(made.pod, SETTINGS)
        assert (again.changed, again.pod) == (False, made.pod)
        for key in before["spec"]:
            if key not in ("containers", "initContainers", "volumes"):
                assert made.pod["spec"][key] == before["spec"][key], "what is not the sidecar's business stays"
    assert mangled == before, "the pod that came is not changed"


def test_what_refers_to_itself_again_and_again_is_refused_before_it_fills_the_memory() -> None:
    bomb: Any = ["x"]
    for _ in range(40):
        bomb = [bomb, bomb]
    assert "more than" in refusal({"metadata": {}, "spec": {"containers": [], "x": bomb}})
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    assert "nested more than" in refusal({"metadata": {}, "spec": deep})
