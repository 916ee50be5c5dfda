// Requests of the page. The session's cookie goes along by itself; one that is no longer good leads to the login page.

/** An answer that is not the one hoped for, with what the service said. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

async function request(path: string, init?: RequestInit): Promise<Response> {
  const answer = await fetch(`/api/v1${path}`, { credentials: "same-origin", ...init });
  if (answer.ok) return answer;
  if (answer.status === 401) location.reload();
  throw new ApiError(answer.status, await said(answer));
}

async function said(answer: Response): Promise<string> {
  const text = await answer.text();
  try {
    const body = JSON.parse(text);
    return body.error?.message ?? body.message ?? text;
  } catch {
    return text.trim() || `the service answered ${answer.status}`;
  }
}

export async function get<T>(path: string): Promise<T> {
  return (await request(path)).json();
}

export async function post<T>(path: string, body: unknown = {}): Promise<T> {
  const init = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return (await request(path, init)).json();
}
