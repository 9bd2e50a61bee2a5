"""The page in Debian's Chromium: two browsers see one queue, a mesh is turned by keyboard, a restart is waited out."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from benchmarks import studio
from jobs.ledger import job_table

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromedriver"), reason="needs chromium and chromedriver"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium leaves its sockets to the collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_two_browsers_one_queue_a_mesh_turned_and_a_restart_waited_out(tmp_path: Path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    scene = studio.Scene(tmp_path / "state")
    scene.fill()
    url = scene.server.url
    with studio.browser(tmp_path / "one") as one, studio.browser(tmp_path / "two") as two:
        for driver in (one, two):
            studio.enter(driver, url, scene.token)
            driver.execute_script("location.hash = '#/queue'")
            studio.wait(driver, "document.querySelectorAll('.job').length == 7")
        one.find_element(By.CSS_SELECTOR, "[data-job='6'] button[aria-label^=Cancel]").click()
        studio.wait(two, "document.querySelector('[data-job=\"6\"] .badge.cancelled')")
        scene.advance(200)
        for driver in (one, two):
            studio.wait(driver, "document.querySelector('[data-job=\"5\"] .progress')?.innerText.includes('200 of 400')")
        assert studio.complaints(one) == [] and studio.hosts(one) == studio.hosts(two) == {url.partition("//")[2]}

        port = int(url.rpartition(":")[2])
        scene.close()
        studio.wait(one, "!document.querySelector('.live.on')")
        scene = studio.Scene(tmp_path / "state", port=port)
        studio.wait(one, "document.querySelector('.live.on')")
        one.execute_script("location.hash = '#/job/1'")
        studio.wait(one, "document.querySelector('.orbit[data-status=ready]')")
        canvas = one.find_element(By.CSS_SELECTOR, ".orbit canvas")
        canvas.send_keys(Keys.ARROW_RIGHT)
        first = float(studio.wait(one, "document.querySelector('.orbit canvas').dataset.azimuth"))
        canvas.send_keys(Keys.ARROW_RIGHT)
        time.sleep(0.5)
        second = float(studio.wait(one, "document.querySelector('.orbit canvas').dataset.azimuth"))
        assert second - first == pytest.approx(0.15, abs=0.01)
        link = one.find_element(By.CSS_SELECTOR, ".tools a[download]")
        assert link.get_attribute("href") == f"{url}/v1/jobs/1/files/mesh.glb"
    scene.close()


def test_a_search_that_has_found_nothing_yet_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from selenium.webdriver.common.by import By

    monkeypatch.setattr(job_table, "NUM_SEARCHED", 3)
    scene = studio.Scene(tmp_path / "state")
    scene.fill()
    with studio.browser(tmp_path / "one") as driver:
        studio.enter(driver, scene.server.url, scene.token)
        driver.execute_script("location.hash = '#/gallery'")
        studio.wait(driver, "document.querySelectorAll('.gallery li').length == 4")
        driver.find_element(By.ID, "search").send_keys("mushroom")
        said = "document.querySelector('main [role=status]').innerText"
        for oldest in (5, 2):
            studio.wait(driver, f"{said}.includes('from {oldest} on. There are older ones')")
            if studio.AXE.exists():
                assert studio.violations(driver) == []
            driver.find_element(By.XPATH, "//button[normalize-space()='More']").click()
        studio.wait(driver, "document.querySelector('.gallery .title')?.innerText == 'a red mushroom with a white stem'")
        assert driver.execute_script(f"return {said}") == "" and studio.complaints(driver) == []
    scene.close()
