"""Reviews as an API server sends them."""

from __future__ import annotations

import copy
from typing import Any

from sidecar.kubernetes import names

UID = "705ab4f5-6393-11e8-b7cc-42010a800002"
_TOKEN_VOLUME = {
    "name": "kube-api-access-x7k2p",
    "projected": {
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {
                "downwardAPI": {
                    "items": [
                        {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
                    ]
                }
            },
        ],
        "defaultMode": 420,
    },
}
_TOKEN_MOUNT = {
    "name": "kube-api-access-x7k2p",
    "readOnly": True,
    "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
}
_MANAGED: dict[str, Any] = {
    "manager": "kube-controller-manager",
    "operation": "Update",
    "apiVersion": "v1",
    "time": "2026-11-27T10:00:00Z",
    "fieldsType": "FieldsV1",
    "fieldsV1": {
        "f:metadata": {
            "f:generateName": {},
            "f:labels": {".": {}, "f:app": {}, "f:pod-template-hash": {}},
            "f:ownerReferences": {".": {}, 'k:{"uid":"0b0a5a3e-7a0c-4c8e-9d7e-1f6b1e5b8a11"}': {}},
        },
        "f:spec": {
            "f:containers": {
                'k:{"name":"api"}': {
                    ".": {},
                    "f:image": {},
                    "f:ports": {".": {}, 'k:{"containerPort":8080,"protocol":"TCP"}': {".": {}, "f:name": {}}},
                }
            },
            "f:restartPolicy": {},
            "f:terminationGracePeriodSeconds": {},
        },
    },
}
_POD: dict[str, Any] = {
    "kind": "Pod",
    "apiVersion": "v1",
    "metadata": {
        "generateName": "accounts-api-7d4b9c6f5d-",
        "namespace": "bank",
        "creationTimestamp": None,
        "labels": {"app": "accounts-api", "pod-template-hash": "7d4b9c6f5d"},
        "ownerReferences": [
            {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "name": "accounts-api-7d4b9c6f5d",
                "uid": "0b0a5a3e-7a0c-4c8e-9d7e-1f6b1e5b8a11",
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
        "managedFields": [_MANAGED],
    },
    "spec": {
        "volumes": [_TOKEN_VOLUME],
        "containers": [
            {
                "name": "api",
                "image": "registry.bank.example/accounts-api:1.4.2",
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "resources": {"requests": {"cpu": "200m", "memory": "256Mi"}},
                "volumeMounts": [_TOKEN_MOUNT],
                "readinessProbe": {
                    "httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"},
                    "timeoutSeconds": 1,
                    "periodSeconds": 10,
                    "successThreshold": 1,
                    "failureThreshold": 3,
                },
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent",
            }
        ],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": "default",
        "serviceAccount": "default",
        "securityContext": {},
        "schedulerName": "default-scheduler",
        "tolerations": [
            {"key": f"node.kubernetes.io/{what}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
            for what in ("not-ready", "unreachable")
        ],
        "priority": 0,
        "enableServiceLinks": True,
        "preemptionPolicy": "PreemptLowerPriority",
    },
    "status": {},
}


def pod(annotations: dict[str, str] | None = None, **metadata: Any) -> dict[str, Any]:
    """A pod of a Deployment as it comes to admission, with all that the API server has added by then."""
    made = copy.deepcopy(_POD)
    made["metadata"] |= metadata
    if annotations:
        made["metadata"]["annotations"] = {names.PREFIX + name: value for name, value in annotations.items()}
    return made


def review_of(obj: Any, **changes: Any) -> dict[str, Any]:
    """A review of its creation; ``changes`` are to the request."""
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    resource = {"group": "", "version": "v1", "resource": "pods"}
    request = {
        "uid": UID,
        "kind": kind,
        "resource": resource,
        "requestKind": kind,
        "requestResource": resource,
        "namespace": "bank",
        "operation": "CREATE",
        "userInfo": {
            "username": "system:serviceaccount:kube-system:replicaset-controller",
            "uid": "ff4f5d2a-0000-4000-8000-000000000000",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"],
            "extra": {"authentication.kubernetes.io/credential-id": ["JTI=7d1f6d3e-42a5-4f0a-9d53-2a56d3d3c0f1"]},
        },
        "object": obj,
        "oldObject": None,
        "dryRun": False,
        "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
    }
    return {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {**request, **changes}}
