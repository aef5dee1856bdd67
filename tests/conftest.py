from pathlib import Path

GOLDEN = Path(__file__).parent / "data" / "golden"


def pytest_addoption(parser):
    parser.addoption("--golden", type=Path, help="check this file of reference tensors instead")


def pytest_generate_tests(metafunc):
    if "golden" in metafunc.fixturenames:
        given = metafunc.config.getoption("--golden")
        files = [given] if given else sorted(GOLDEN.glob("*.safetensors"))
        metafunc.parametrize("golden", files, ids=[file.stem for file in files], scope="module")
