// A canvas that is as sharp as the screen, as wide as its place, and drawn again when what it shows changes.
import { useEffect, useRef, useState } from "preact/hooks";

export interface Pen {
  context: CanvasRenderingContext2D;
  width: number;
  height: number;
}

interface Props {
  height: number;
  label: string;
  draw: (pen: Pen) => void;
  /** Where the pointer is, in pixels; nothing once it has left. */
  onPoint?: (x: number | undefined, y: number, width: number) => void;
  onClick?: () => void;
}

export function Canvas({ height, label, draw, onPoint, onClick }: Props) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const [width, setWidth] = useState(0);
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.floor(entry!.contentRect.width)));
    observer.observe(canvas.current!.parentElement!);
    return () => observer.disconnect();
  }, []);
  useEffect(() => {
    if (width === 0) return;
    const element = canvas.current!;
    const ratio = devicePixelRatio || 1;
    element.width = width * ratio;
    element.height = height * ratio;
    const context = element.getContext("2d")!;
    context.scale(ratio, ratio);
    context.font = "11px system-ui, sans-serif";
    draw({ context, width, height });
  }, [width, height, draw]);
  return (
    <div class="canvas" style={{ height: `${height}px` }}>
      <canvas
        ref={canvas}
        role="img"
        aria-label={label}
        style={{ width: `${width}px`, height: `${height}px` }}
        onPointerMove={(event) => onPoint?.(event.offsetX, event.offsetY, width)}
        onPointerLeave={() => onPoint?.(undefined, 0, width)}
        onClick={onClick}
      />
    </div>
  );
}
