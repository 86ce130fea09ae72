"""A cluster for all tests that do not break theirs."""

import pytest

import ipbroker


@pytest.fixture(scope="session")
def cluster():
    with ipbroker.Cluster(n=2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def client(cluster):
    with cluster.client() as client:
        yield client


@pytest.fixture
def executor(client):
    executor = client.executor()
    yield executor
    executor.shutdown(cancel_futures=True)
