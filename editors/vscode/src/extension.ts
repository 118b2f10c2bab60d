// Starts `gptailor lsp` for plans, and again where a setting changes.

import * as path from "node:path";
import * as vscode from "vscode";
import { LanguageClient, State, type ServerOptions } from "vscode-languageclient/node";

let client: LanguageClient | undefined;

export async function activate(context: vscode.ExtensionContext): Promise<void> {
  context.subscriptions.push(
    vscode.commands.registerCommand("gptailor.restart", restart),
    vscode.workspace.onDidChangeConfiguration(async (change) => {
      if (change.affectsConfiguration("gptailor")) {
        await restart();
      }
    }),
  );
  await start();
}

export async function deactivate(): Promise<void> {
  await client?.stop();
}

async function restart(): Promise<void> {
  const running = client;
  client = undefined;
  if (running !== undefined && running.state !== State.Stopped) {
    await running.stop();
  }
  await start();
}

async function start(): Promise<void> {
  const settings = vscode.workspace.getConfiguration("gptailor");
  const command = program(settings.get("path", "gptailor"));
  const args = ["lsp", ...(settings.get("hub", false) ? ["--hub"] : [])];
  const server: ServerOptions = { command, args };
  client = new LanguageClient("gptailor", "Tailor", server, {
    documentSelector: [{ language: "tailor" }],
    initializationOptions: { checkModels: settings.get("checkModels", true) },
  });
  try {
    await client.start();
  } catch (error) {
    const said = error instanceof Error ? error.message : String(error);
    void vscode.window.showErrorMessage(
      `'${command} lsp' doesn't start: ${said}. ` +
        "Install it by pip install 'gptailor[lsp]', or set gptailor.path.",
    );
  }
}

/** The program; one that starts with ./ or ../ starts at the folder that is open. */
function program(said: string): string {
  const folder = vscode.workspace.workspaceFolders?.[0]?.uri.fsPath;
  return folder !== undefined && /^\.{1,2}[\\/]/.test(said) ? path.join(folder, said) : said;
}
