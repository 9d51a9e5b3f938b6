"""The clusters of tests/cluster, for the tests here."""

from tests.cluster.conftest import api, cluster, module_cluster, name, pytest_runtest_makereport

__all__ = ["api", "cluster", "module_cluster", "name", "pytest_runtest_makereport"]
