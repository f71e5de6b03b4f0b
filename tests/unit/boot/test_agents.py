from mpiboot.boot import agents as nodes


def test_answers_and_banners():
    output = b'welcome\n{"node": "n1", "cpus": 8}\n{"node": "n2", "clean": true}\n{"node": "n1", "cl'
    assert nodes.parse_answers(output) == {"n1": {"cpus": 8}}
    assert nodes.cleaned(output) == {"n2"}
