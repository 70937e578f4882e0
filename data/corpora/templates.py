"""Sentence templates of in-car commands, by language and domain.

`{slot}` is filled by grammar.py: a name list, a number, or one of PHRASES.
"""

from __future__ import annotations

from typing import NamedTuple


class Group(NamedTuple):
    """Templates of one domain, drawn together with one weight."""

    domain: str
    weight: float
    lines: tuple[str, ...]


PHRASES: dict[str, tuple[str, ...]] = {
    "poi_en": (
        "petrol station", "charging station", "supermarket", "coffee shop",
        "parking garage", "pharmacy", "restaurant", "hotel", "bank", "hospital",
    ),
    "spot_en": ("airport", "station", "hospital", "museum", "university", "city hall"),
    "window_en": (
        "driver window", "passenger window", "rear left window", "rear right window",
        "back windows", "sunroof", "trunk",
    ),
    "device_en": (
        "seat heating", "steering wheel heating", "air conditioning", "seat massage",
        "reading light", "fog lights", "wipers", "rear defroster", "ambient light",
    ),
    "poi_zh": (
        "加油站", "充电站", "超市", "咖啡店", "停车场", "药店", "餐厅", "酒店",
        "银行", "医院",
    ),
    "spot_zh": ("机场", "火车站", "医院", "博物馆", "大学", "体育馆"),
    "window_zh": (
        "主驾车窗", "副驾车窗", "左后车窗", "右后车窗", "所有车窗", "天窗", "后备箱",
    ),
    "device_zh": (
        "座椅加热", "方向盘加热", "空调", "座椅按摩", "阅读灯", "雾灯", "雨刷",
        "后窗除雾", "氛围灯",
    ),
}  # fmt: skip

ENGLISH = (
    Group("navigation", 0.27, (
        "navigate to {place_en}", "take me to {place_en}", "drive to {place_en}",
        "how far is {place_en}", "i want to go to {place_en}",
        "find the fastest way to {place_en}", "avoid tolls on the way to {place_en}",
        "navigate to {place_en} {spot_en}", "take me to {place_en} {spot_en}",
        "find a {poi_en} in {place_en}", "what is the weather in {place_en}",
        "how is the traffic in {place_en}", "drive to {place_en} through {place_en}",
        "find a {poi_en} nearby", "add {place_en} as a stop",
        "how long does it take from {place_en} to {place_en}",
    )),
    Group("media", 0.27, (
        "play {song_en}", "play {song_en} by {artist_en}", "i want to hear {song_en}",
        "play something by {artist_en}", "add {song_en} to my playlist",
        "play the new album by {artist_en}", "skip {song_en}", "who sings {song_en}",
        "play {song_en} on {app_en}", "search {app_en} for {artist_en}",
        "open {app_en}", "play {song_en} again",
    )),
    Group("phone", 0.2, (
        "call {person_en}", "call {person_en} at home", "text {person_en}",
        "send a message to {person_en}", "call {person_en} on the mobile",
        "tell {person_en} i will be {minutes_en} minutes late", "dial {digits_en}",
        "tell {person_en} i am in {place_en}", "call {digits_en}",
        "read the last message from {person_en}", "my number is {digits_en}",
    )),
    Group("climate", 0.08, (
        "set the temperature to {degrees_en} degrees", "make it {degrees_en} degrees",
        "set the fan to level {level_en}", "turn on the {device_en}",
        "turn off the {device_en}", "set the {device_en} to level {level_en}",
    )),
    Group("cabin", 0.07, (
        "open the {window_en}", "close the {window_en}",
        "open the {window_en} to {percent_en} percent",
        "move my seat forward", "move my seat back", "fold the mirrors",
        "turn on the {device_en} and close the {window_en}",
    )),
    Group("numbers", 0.08, (
        "set the volume to {percent_en}", "tune the radio to {radio_en}",
        "set the cruise control to {speed_en}", "wake me up at {time_en}",
        "remind me in {minutes_en} minutes", "play radio station {radio_en}",
        "set an alarm for {time_en}",
    )),
    Group("confirmation", 0.03, (
        "yes please", "no thank you", "cancel that", "that is right", "never mind",
        "go back", "stop the music", "next song", "go home", "start again",
        "say that again", "turn it up", "turn it down", "end the call",
    )),
)  # fmt: skip

MANDARIN = (
    Group("navigation", 0.27, (
        "导航到{place_zh}", "带我去{place_zh}", "我要去{place_zh}", "开车去{place_zh}",
        "去{place_zh}怎么走", "离{place_zh}还有多远", "从{place_zh}到{place_zh}要多久",
        "{place_zh}今天天气怎么样", "{place_zh}现在堵车吗", "不走高速去{place_zh}",
        "导航到{place_zh}{spot_zh}", "查找{place_zh}附近的{poi_zh}",
        "附近有没有{poi_zh}", "先去{place_zh}再去{place_zh}", "把{place_zh}设为途经点",
    )),
    Group("media", 0.27, (
        "播放{song_zh}", "我想听{song_zh}", "播放{artist_zh}的{song_zh}",
        "来一首{artist_zh}的歌", "收藏{song_zh}", "{song_zh}是谁唱的",
        "我想听{artist_zh}的{song_zh}", "播放{artist_zh}的新专辑",
        "循环播放{song_zh}", "把{song_zh}加到歌单", "下一首放{song_zh}",
    )),
    Group("phone", 0.2, (
        "打电话给{person_zh}", "给{person_zh}打电话", "呼叫{person_zh}",
        "发消息给{person_zh}", "告诉{person_zh}我晚到{minutes_zh}分钟",
        "告诉{person_zh}我在{place_zh}", "拨打{digits_zh}", "读一下{person_zh}的消息",
        "我的号码是{digits_zh}", "{person_zh}的电话是多少",
    )),
    Group("climate", 0.08, (
        "空调调到{degrees_zh}度", "温度设为{degrees_zh}度", "风量调到{level_zh}档",
        "打开{device_zh}", "关闭{device_zh}", "{device_zh}调到{level_zh}档",
    )),
    Group("cabin", 0.07, (
        "打开{window_zh}", "关闭{window_zh}", "{window_zh}打开百分之{percent_zh}",
        "座椅往前移", "座椅往后移", "打开{device_zh}然后关闭{window_zh}",
    )),
    Group("numbers", 0.08, (
        "音量调到百分之{percent_zh}", "收音机调到{radio_zh}", "定速巡航设为{speed_zh}",
        "{time_zh}叫醒我", "{minutes_zh}分钟以后提醒我", "定一个{time_zh}的闹钟",
    )),
    Group("confirmation", 0.03, (
        "好的", "不用了谢谢", "取消", "确定", "没错", "返回", "下一首", "停止播放",
        "再说一遍", "声音大一点", "声音小一点", "挂断电话", "我要回家", "算了吧",
    )),
)  # fmt: skip

MIXED = (
    Group("navigation", 0.3, (
        "导航到 {place_en}", "我要去 {place_en}", "带我去 {place_en}",
        "{place_en} 今天天气怎么样", "从{place_zh}到 {place_en} 要多久",
        "{place_en} 现在堵车吗", "离 {place_en} 还有多远",
    )),
    Group("media", 0.4, (
        "播放 {song_en}", "我想听 {song_en}", "播放 {artist_en} 的 {song_en}",
        "来一首 {artist_en} 的歌", "收藏 {song_en}", "打开 {app_en}",
        "用 {app_en} 播放{song_zh}", "在 {app_en} 上搜索{artist_zh}",
        "把 {song_en} 加到歌单", "用 {app_en} 播放 {song_en}",
    )),
    Group("phone", 0.3, (
        "打电话给 {person_en}", "给 {person_en} 打电话", "发消息给 {person_en}",
        "告诉 {person_en} 我在{place_zh}", "告诉{person_zh}我在 {place_en}",
        "告诉 {person_en} 我晚到{minutes_zh}分钟", "读一下 {person_en} 的消息",
    )),
)  # fmt: skip

TEMPLATES: dict[str, tuple[Group, ...]] = {
    "en": ENGLISH,
    "zh": MANDARIN,
    "mixed": MIXED,
}
