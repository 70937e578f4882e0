"""The page at /: served whole to anybody, and what it shows is what the server says."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import httpx
import pytest
import soundfile

from nim4_jax.serving.server import web_page

FOLDER = Path(web_page.__file__).with_name("page")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
KEY = "0123456789abcdef"


def load_chromium():
    path = Path(__file__).with_name("chromium.py")
    spec = importlib.util.spec_from_file_location("chromium", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_needs_no_key_but_what_it_asks_for_does(serve):
    with serve(keys=f"acme:{KEY}") as server:
        address = f"http://{server.address}"
        for path in web_page.PATHS:
            answer = httpx.get(address + path)
            assert answer.status_code == 200 and answer.content
            assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert httpx.get(f"{address}/page/index.html").status_code == 401
        assert httpx.get(f"{address}/page/..%2fweb_page.py").status_code == 401
        assert httpx.get(f"{address}/v1/models").status_code == 401


def test_the_page_loads_nothing_from_elsewhere():
    assert {path.name for path in FOLDER.iterdir()} == set(web_page._FILES)
    for path in FOLDER.iterdir():
        assert "://" not in path.read_text("utf8").replace("https:// and", ""), path
    html = (FOLDER / "index.html").read_text("utf8")
    loaded = re.findall(r'(?:src|href)="([^"#]+)"', html)
    assert {f"/{path}" for path in loaded if path != "data:,"} <= set(web_page.PATHS)
    # Every control has a name that is read aloud.
    for name in re.findall(r'<(?:input|textarea|progress|meter) id="(\w+)"', html):
        control = re.search(rf'<\w+ id="{name}"[^>]*>', html).group()
        inside = re.search(rf"<label[^>]*>[^<]*<\w+ id=\"{name}\"", html)
        assert f'for="{name}"' in html or "aria-label=" in control or inside, name


@pytest.mark.long
@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
def test_a_browser_shows_what_the_server_says(serve, talk, tmp_path):
    """A fake microphone and an upload, without one error in the browser's log."""
    chromium, voice = load_chromium(), tmp_path / "voice.wav"
    soundfile.write(voice, talk(0, 1, 2), 16_000)
    profile = str(tmp_path / "profile")
    with (
        serve(keys=f"acme:{KEY}") as server,
        chromium.open_tab(CHROMIUM, profile, str(voice)) as tab,
    ):
        address = f"http://{server.address}"

        def ask(form: str) -> httpx.Response:
            with voice.open("rb") as file:
                return httpx.post(
                    f"{address}/v1/audio/transcriptions",
                    files={"file": file},
                    data={"model": "nim4-asr", "response_format": form},
                    headers={"authorization": f"Bearer {KEY}"},
                    timeout=60,
                )

        tab.ask("Page.navigate", url=address)
        tab.wait("document.querySelector('#login:not([hidden])') !== null")
        tab.run(f"document.querySelector('#key').value = '{KEY}'")
        tab.run("document.querySelector('#key-form button').click()")
        tab.wait("document.querySelector('#model').textContent")
        tab.run("document.querySelector('#record').click()")
        paragraphs = "[...document.querySelectorAll('#transcript p')]"
        tab.wait(f"{paragraphs}.length >= 2", 90.0)
        tab.run("document.querySelector('#record').click()")
        tab.wait("document.querySelector('#record').ariaPressed === 'false'")
        shown = tab.run(f"{paragraphs}.map((p) => p.lastChild.textContent)")
        frames = [
            json.loads(event["params"]["response"]["payloadData"])
            for event in tab.events
            if event["method"] == "Network.webSocketFrameReceived"
        ]
        said = [one["text"] for one in frames if one["event"] == "final"]
        assert shown == [text for text in said if text]

        document = tab.ask("DOM.getDocument")["root"]["nodeId"]
        field = tab.ask("DOM.querySelector", nodeId=document, selector="#file")
        tab.ask("DOM.setFileInputFiles", files=[str(voice)], nodeId=field["nodeId"])
        tab.wait("!document.querySelector('#downloads').hidden")
        srt, vtt = ask("srt").text, ask("vtt").text
        call = f"module.toVtt(module.readCues({json.dumps(srt)}))"
        module = "import('/page/transcript.js')"
        assert tab.run(f"{module}.then((module) => {call})") == vtt
        cues = tab.run("document.querySelectorAll('#passages li').length")
        assert cues == srt.count(" --> ") > 0
        wrong = [
            event
            for event in tab.events
            if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")
            # A refused key, which is what makes the page ask for one.
            and "401" not in json.dumps(event)
        ]
        assert wrong == []
