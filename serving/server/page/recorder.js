// AudioWorklet: blocks of 128 float samples → packets of 16 bit PCM, about 40 ms each.
class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.size = Math.round(sampleRate * 0.04);
    this.packet = new Int16Array(this.size);
    this.filled = 0;
    this.peak = 0;
  }

  process(inputs) {
    const channel = inputs[0][0];
    if (!channel) return true; // no microphone yet
    for (const sample of channel) {
      this.peak = Math.max(this.peak, Math.abs(sample));
      this.packet[this.filled++] = Math.max(-1, Math.min(1, sample)) * 32767;
      if (this.filled === this.size) {
        const packet = this.packet;
        this.port.postMessage({ packet, peak: this.peak }, [packet.buffer]);
        this.packet = new Int16Array(this.size);
        this.filled = this.peak = 0;
      }
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
